"""`edistill compare`: students of one ensemble against each other, and what of it the rows can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.comparable import refuse_unlike
from ensemble_distill.evaluation.compared import Compared, compared
from ensemble_distill.evaluation.evaluating import kept, measure
from ensemble_distill.evaluation.exported import evaluated_runs
from ensemble_distill.reporting.pareto import draw_pareto, refuse_picture
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.seeds import by_seed
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings
from ensemble_distill.workspace.evaluating import open_for_evaluation
from ensemble_distill.workspace.folders import refuse_trial
from ensemble_distill.workspace.workspace import Workspace


def compare(
    settings: Settings,
    runs: Sequence[str],
    *,
    split: str | None = None,
    picture: str | Path | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Compared:
    """Hold runs of one ensemble against the first of them, on the same rows, with intervals.

    Runs that differ in their seed alone stand together: their figures are means, and their differences are of means.
    What is found of each run is kept as `evaluate` keeps it. An exported file stands for itself, as in `evaluate`. It
    differs from its own run by rounding, and no such difference is clear.

    Args:
        runs: folders or names of runs, or exported files; the first is what the others are held against.
        split: test by default, or validation where there is no test.
        picture: a file to draw worth against cost into, .svg, .png or .pdf.
        trust: as for `evaluate`.

    Raises:
        EdistillError: as for `evaluate_together`; or there is nothing to hold against the first.
    """
    if picture is not None:
        refuse_picture(Path(picture))
    progress = progress or Silent()
    found = evaluated_runs(Path(settings.output.runs), runs, progress.note)
    if len(found) > 1:
        refuse_unlike(found)
    groups = by_seed(found)
    _refuse_alone(found, groups)
    refuse_trial(found, settings.limit)
    given = open_for_evaluation(Workspace(settings, progress, trust), found[0])
    measured = measure(given, found, {}, split, shifts=False)
    result = compared(measured, found, kept(given, found, measured), groups)
    if picture is not None:
        draw_pareto(result, Path(picture))
    return result


def _refuse_alone(runs: Sequence[Run], groups: dict[str, list[int]]) -> None:
    if len(groups) > 1:
        return
    own = [run.folder.name if run.keeps else str(run.folder) for run in runs]
    names = ", ".join(own)
    seeds = " They differ in their seed alone, and stand together." if len(runs) > 1 else ""
    raise EdistillError(
        f"compare holds runs against each other, and {names} is one thing.{seeds} Name another run besides: "
        f"edistill compare {own[0]} OTHER. To see one run, edistill evaluate {own[0]}."
    )
