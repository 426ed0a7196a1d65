"""Saving an evaluation in the folder of its run or chain."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill import __version__
from ensemble_distill.evaluation.measured import Measured
from ensemble_distill.evaluation.measuring import SplitValues
from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.evaluation.rows import prefixed
from ensemble_distill.runs.evaluations import FIGURES_OF_ROWS
from ensemble_distill.runs.folder import EVALUATIONS, MADE_FROM
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.lock import BusyError, one_writer
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.seals import WRITTEN_BY, write_sealed_json
from ensemble_distill.tasks.figures import Values

PATIENCE = 10.0  # seconds to wait for another evaluation to save its document, which takes milliseconds

Named = Mapping[str, tuple[int, Run]]  # runs with their positions, by the names of their students in `.npz`


def keep_or_warn(of: Path, students: Named, measured: Measured, found: Evaluation, progress: Progress) -> None:
    """Save an evaluation in the folder of a run or chain, or warn if it cannot be saved: the figures are known anyway.

    Raises:
        EdistillError: a run was replaced or recalibrated since it was opened, so the figures no longer describe it.
    """
    runs = [run for _, run in students.values()]
    not_kept = f"The figures are not kept in {of}"
    try:
        with ExitStack() as locks:
            for folder in dict.fromkeys((*(run.folder for run in runs), of)):
                locks.enter_context(one_writer(folder, patience=PATIENCE))
            for run in runs:
                run.refuse_replaced()
            _keep(of, students, measured, found)
    except BusyError as busy:
        for run in runs:
            run.refuse_replaced()
        progress.warn(f"{not_kept}. {busy}")
    except OSError as error:
        progress.warn(f"{not_kept}: {error.strerror or error}. To keep them, fix that and run the command again.")


def _keep(of: Path, students: Named, measured: Measured, found: Evaluation) -> None:
    """Write the document, and the values of each row in `.npz`.

    The document records the weights that it describes and the digests of its `.npz` files. Shifts have a file of their
    own, which a later evaluation without shifts leaves in place.
    """
    folder = of / EVALUATIONS
    at = {name: index for name, (index, _) in students.items()}
    rows = {f"{found.split}.npz": _npz(measured.main, at)}
    rows |= {f"ood/{name}.npz": _npz(outside, at) for name, outside in measured.ood.items()}
    for name, content in rows.items():
        write_whole(folder / name, content, within=of)
    made: dict[str, Any] = {
        WRITTEN_BY: __version__,
        MADE_FROM: {name: run.made_from.to_json() for name, (_, run) in students.items()},
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in rows.items()}
    document = found.to_json()
    # last, since it refers to the other files
    write_sealed_json(folder / f"{found.split}.json", {**document, **made, FIGURES_OF_ROWS: digests}, within=of)
    if found.shifts is not None:
        kept = ("schema", "task", "run", "split", "rows", "shifts", "shift_levels")
        shifts = {key: document[key] for key in kept}
        write_sealed_json(folder / "shifts" / f"{found.split}.json", {**shifts, **made}, within=of)


def _npz(values: SplitValues, students: Mapping[str, int]) -> bytes:
    named: Values = {}
    for model, rows in values.models.items():
        if isinstance(model, str):
            named |= prefixed(model, rows)
    for name, index in students.items():
        named |= prefixed(name, values.models[index])
        named |= prefixed("both" if name == STUDENT else f"both_{name}", values.nearness[index])
    small: dict[str, Any] = {name: rows.astype(np.float32) for name, rows in named.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **small)
    return file.getvalue()
