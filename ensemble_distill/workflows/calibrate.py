"""`edistill calibrate`: bring a run's uncertainty to its ensemble's, on rows that no member was trained on."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.evaluation.calibrating import CalibrationReport, calibrate_run, forget_calibration
from ensemble_distill.runs.finding import find_run
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings
from ensemble_distill.workspace.evaluating import open_for_evaluation
from ensemble_distill.workspace.workspace import Workspace


def calibrate(
    settings: Settings,
    run: str | None = None,
    *,
    split: str | None = None,
    remove: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Fit a calibration and keep it in the run, where evaluate, export and predict apply it.

    Args:
        run: a run's folder or name; the latest by default.
        split: rows that no member was trained on; calibration by default, or validation where there is none.
        remove: take the run's calibration away instead.
        trust: load pickled checkpoints that name arbitrary globals, and run the code that runs from elsewhere name.
        progress: is told how far it is.

    Raises:
        EdistillError: no run, rows that members were trained on, too few rows, or none to remove.
    """
    found = find_run(Path(settings.output.runs), run)
    if remove:
        return forget_calibration(found)
    return calibrate_run(open_for_evaluation(Workspace(settings, progress or Silent(), trust), found), found, split)
