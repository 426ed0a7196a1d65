"""`edistill evaluate`: one run or several beside their ensemble, its mean member and its best sub-ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemble_distill.evaluation.comparable import refuse_unlike
from ensemble_distill.evaluation.comparison import Comparison
from ensemble_distill.evaluation.evaluating import evaluate_chain, evaluate_runs, kept, measure
from ensemble_distill.evaluation.exported import evaluated_runs, find_evaluated
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.reporting.report import refuse_report, refuse_report_of_chain, write_report
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings
from ensemble_distill.workspace.evaluating import open_for_evaluation
from ensemble_distill.workspace.folders import refuse_trial
from ensemble_distill.workspace.workspace import Workspace


def evaluate(
    settings: Settings,
    run: str | None = None,
    *,
    split: str | None = None,
    shifts: bool = False,
    report: str | Path | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a run, or the generations of a chain, with the ensemble it learned from, on a split and on the OOD sets.

    The members' outputs come from the cache if it holds the split, else directly from the teachers. The best
    sub-ensembles are chosen on the validation rows; without labels there, they are None.

    Args:
        run: a run's or a chain's folder or name, or an exported file (.onnx, .pt2 or .safetensors) or a folder with
            one; the latest run by default.
        split: test by default, or validation if there is no test.
        shifts: also evaluate every shift of the split in five severities, asking the teachers themselves.
        report: an .html page to write about a run; the data of its plots goes into a .json beside it.
        trust: load pickled checkpoints that name arbitrary globals, and run the code that runs from elsewhere name.
        progress: receives progress reports.

    Returns:
        The figures; `to_json()` is the document of `evaluate --json`. They are kept in the run as
        `evaluations/SPLIT.json`, with the figures of each row in an `.npz` beside it, if that can be written. For a
        chain, the student is the last generation; `models` has each generation, and BANE, the averages of the first 2,
        3, ... generations' predictions, as `bane-2`, `bane-3`, ....

    Raises:
        EdistillError: there is no such run or split; the data is not what the cache was made from, or not what the
            student takes; the members are not those of the run; a report is requested for a chain.
    """
    if report is not None:
        refuse_report(Path(report))
    progress = progress or Silent()
    found = find_evaluated(Path(settings.output.runs), run, progress.note)
    if report is not None and isinstance(found, Chain):
        refuse_report_of_chain(found)
    all_runs = found.runs if isinstance(found, Chain) else (found,)
    refuse_trial(all_runs, settings.limit)
    given = open_for_evaluation(Workspace(settings, progress, trust), all_runs[0], must_ask=shifts)
    if isinstance(found, Chain):
        return evaluate_chain(given, found, split, shifts)
    measured = measure(given, [found], {}, split, shifts)
    (evaluation,) = kept(given, [found], measured)
    if report is not None:
        write_report(Path(report), measured, evaluation, given.splits[measured.split])
    return evaluation


def evaluate_together(
    settings: Settings,
    runs: Sequence[str],
    *,
    split: str | None = None,
    shifts: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare several runs of one ensemble with it, and so with each other; see `evaluate`.

    The members are read or asked once for all runs. Results for each run are kept as by `evaluate`.

    Args:
        runs: folders or names, or exported files; see `with_their_runs`.

    Raises:
        EdistillError: as for `evaluate`; or a run is given twice, or they differ in task, members or training data.
    """
    progress = progress or Silent()
    found = evaluated_runs(Path(settings.output.runs), runs, progress.note)
    refuse_unlike(found)
    refuse_trial(found, settings.limit)
    given = open_for_evaluation(Workspace(settings, progress, trust), found[0], must_ask=shifts)
    return Comparison(evaluate_runs(given, found, split, shifts))
