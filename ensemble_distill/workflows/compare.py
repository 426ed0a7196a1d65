"""`edistill compare`: students of one ensemble against each other, with what the rows can tell apart."""

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
from ensemble_distill.runtime.words import shell
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
    """Compare runs of one ensemble with the first of them, on the same rows, with intervals.

    Runs that differ only in their seed form a group: their figures are means, and differences are between means.
    Results for each run are kept as by `evaluate`. An exported file is a model of its own, as in `evaluate`. It differs
    from its own run by rounding, and no such difference is clear.

    Args:
        runs: folders or names of runs, or exported files; the others are compared with the first one.
        split: test by default, or validation if there is no test.
        picture: a file to plot worth against cost into, .svg, .png or .pdf.
        trust: as for `evaluate`.

    Raises:
        EdistillError: as for `evaluate_together`; or there is nothing to compare with the first.
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
        f"edistill compare {shell(own[0])} OTHER. To see one run, edistill evaluate {shell(own[0])}."
    )
