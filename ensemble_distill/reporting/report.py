"""`report.html`, and `report.json` with the data of its figures."""

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
from ensemble_distill.reporting.targets import refuse_target
from ensemble_distill.reporting.verdict import verdict
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runtime.files import write_output
from ensemble_distill.runtime.jsons import json_text, read_json
from ensemble_distill.runtime.words import shell

ENDING = ".html"


def refuse_report(path: Path) -> None:
    """Raise EdistillError if a report cannot be written to this path."""
    refuse_target("--report", path, (ENDING,))
    beside = data_of(path)
    if beside.exists() and not _is_of_a_report(beside):
        raise EdistillError(
            f"--report is {path}, and what it draws is written to {beside}, which holds something else. Give the "
            "report another name, or move that file away."
        )


def data_of(report: Path) -> Path:
    """The file beside a report that holds the data of its figures."""
    return report.with_suffix(".json")


def _is_of_a_report(path: Path) -> bool:
    try:
        found = read_json(path)
    except (OSError, ValueError, EdistillError):
        return False
    return isinstance(found, dict) and {"verdict", "figures"} <= found.keys()


def refuse_report_of_chain(chain: Chain) -> None:
    """Raise EdistillError, since a report shows one student."""
    raise EdistillError(
        f"--report shows one student, and {chain.folder} is a chain of {len(chain.runs)}. Name a generation: "
        f"edistill evaluate {shell(f'{chain.folder.name}/{chain.runs[-1].folder.name}')} --report …"
    )


def write_report(path: Path, measured: Measured, found: Evaluation, source: Source) -> None:
    """Write a report of the first run measured, and the data of its figures; see `data_of`.

    Args:
        found: the evaluation of that run.
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
    beside = data_of(path)
    told = page(found, said, tables(Comparison((found,))), list(remarks(found)), drawn, beside.name)
    write_output(beside, json_text(data).encode())
    write_output(path, told.encode())


def seen_of(measured: Measured, found: Evaluation, source: Source) -> Seen:
    """What the figures of the first run are drawn from."""
    main, rows = measured.main, [row.row for row in measured.main.heads[0].farthest]
    return Seen(
        evaluation=found,
        members=measured.members,
        ensemble=main.models[ENSEMBLE],
        student=main.models[0],
        compared=main.compared.get(0, main.models[0]),
        elsewhere={name: (of.models[ENSEMBLE], of.models[0]) for name, of in measured.ood.items()},
        heads=main.heads[0],
        called={row: source.name(row) for row in rows},
        looks=_looks(source, rows),
    )


def _looks(source: Source, rows: list[int]) -> Mapping[int, NDArray[np.uint8]]:
    """The pictures of rows, if they have one or three channels."""
    if source.kind != "pixels":
        return {}
    items = {row: np.asarray(source.item(row).x) for row in rows}
    return {row: x for row, x in items.items() if x.ndim == 3 and x.shape[-1] in (1, 3)}
