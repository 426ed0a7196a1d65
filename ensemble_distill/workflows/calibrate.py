"""`edistill calibrate`: fit a run's uncertainty to its ensemble's, on rows that no member was trained on."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.calibrating import CalibrationReport, calibrate_run, forget_calibration
from ensemble_distill.runs.finding import find_run
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings
from ensemble_distill.workspace.evaluating import open_for_evaluation
from ensemble_distill.workspace.folders import refuse_trial
from ensemble_distill.workspace.workspace import Workspace


def calibrate(
    settings: Settings,
    run: str | None = None,
    *,
    split: str | None = None,
    by_row: bool = False,
    remove: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Fit a calibration and keep it in the run, where evaluate, export and predict apply it.

    Args:
        run: a run's folder or name; the latest by default.
        split: rows that no member was trained on; calibration by default, or validation if there is none.
        by_row: let each row's spread depend on its own uncertainties, if that helps on rows not used for the fit; see
            `Calibration.power`. Model uncertainty is then nearer to the ensemble's on such rows, but a weaker sign of
            rows from elsewhere.
        remove: remove the run's calibration instead.
        trust: load pickled checkpoints that name arbitrary globals, and run the code that runs from elsewhere name.
        progress: receives progress reports.

    Raises:
        EdistillError: there is no run, members were trained on the rows, there are too few rows, or no calibration to
            remove.
    """
    if remove and by_row:
        raise EdistillError("--remove takes a calibration away, and --by-row fits one. Leave one of them out.")
    found = find_run(Path(settings.output.runs), run)
    if remove:
        return forget_calibration(found)
    refuse_trial([found], settings.limit)
    given = open_for_evaluation(Workspace(settings, progress or Silent(), trust), found)
    return calibrate_run(given, found, split, by_row)
