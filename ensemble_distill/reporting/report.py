"""`report.html`, and `report.json` with what it draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.comparison import Comparison
from ensemble_distill.evaluation.measured import Measured
from ensemble_distill.evaluation.names import ENSEMBLE
from ensemble_distill.evaluation.remarks import remarks
from ensemble_distill.evaluation.result import SCHEMA, Evaluation
from ensemble_distill.evaluation.tables import tables
from ensemble_distill.reporting.page import page
from ensemble_distill.reporting.pictures import pictures
from ensemble_distill.reporting.seen import Seen
from ensemble_distill.reporting.verdict import verdict
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.jsons import json_text

ENDING = ".html"


def refuse_report(path: Path) -> None:
    """Raise EdistillError where a report of that name can't be written."""
    if path.suffix.lower() != ENDING:
        raise EdistillError(
            f"--report is {path}, which ends in {path.suffix or 'nothing'}, and a report ends in {ENDING}. "
            f"Name it {path.with_suffix(ENDING)}."
        )
    if not path.parent.is_dir():
        raise EdistillError(f"--report is {path}, and there is no folder {path.parent}. Make it, or name another.")


def refuse_report_of_chain(chain: Chain) -> None:
    """Raise EdistillError: a page is of one student."""
    raise EdistillError(
        f"--report shows one student, and {chain.folder} is a chain of {len(chain.runs)}. Name a generation: "
        f"edistill evaluate {chain.folder.name}/{chain.runs[-1].folder.name} --report …"
    )


def write_report(path: Path, measured: Measured, found: Evaluation, source: Source) -> None:
    """Write a report of the first run that was measured, and its data beside it, `.json` for `.html`.

    Args:
        found: of that run.
        source: the rows that it was measured on.
    """
    seen = seen_of(measured, found, source)
    drawn, said = pictures(seen), verdict(found)
    data = {
        "schema": SCHEMA,
        "run": found.run,
        "split": found.split,
        "rows": found.rows,
        "verdict": {"ship": said.ship, "headline": said.headline, "reasons": list(said.reasons)},
        "figures": {each.key: {"title": each.title, "told": each.told, "data": each.data} for each in drawn},
    }
    told = page(found, said, tables(Comparison((found,))), list(remarks(found, in_chain=False)), drawn)
    write_whole(path.with_suffix(".json"), json_text(data).encode())
    write_whole(path, told.encode())


def seen_of(measured: Measured, found: Evaluation, source: Source) -> Seen:
    """What of a first run is drawn."""
    main, rows = measured.main, [row.row for row in measured.main.heads[0].farthest]
    return Seen(
        evaluation=found,
        members=measured.members,
        ensemble=main.models[ENSEMBLE],
        student=main.models[0],
        near=main.nearness[0],
        elsewhere={name: (of.models[ENSEMBLE], of.models[0]) for name, of in measured.ood.items()},
        heads=main.heads[0],
        called={row: source.name(row) for row in rows},
        looks=_looks(source, rows),
    )


def _looks(source: Source, rows: list[int]) -> Mapping[int, NDArray[np.uint8]]:
    """Of rows that are pictures of one channel or three."""
    if source.kind != "pixels":
        return {}
    items = {row: np.asarray(source.item(row).x) for row in rows}
    return {row: x for row, x in items.items() if x.ndim == 3 and x.shape[-1] in (1, 3)}
