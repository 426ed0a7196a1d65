"""`edistill evaluate`: one run or several beside their ensemble, its mean member and its best sub-ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ensemble_distill.data.shifts import levels, shifts_for
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.answers import Answers, beside_its_teachers
from ensemble_distill.evaluation.comparable import open_for, refuse_unlike
from ensemble_distill.evaluation.comparison import SIZES, Comparison, Model
from ensemble_distill.evaluation.document import Evaluation
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runs.finding import find, find_runs
from ensemble_distill.runs.folder import generation_name
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.lock import BusyError, one_writer
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings

PATIENCE = 10.0  # seconds to wait for another evaluation to keep its document, which takes milliseconds


def evaluate(
    settings: Settings,
    run: str | None = None,
    *,
    split: str | None = None,
    shifts: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a run, or the generations of a chain, with the ensemble it learned from on a split and on the OOD sets.

    The members' outputs come from the cache where it holds the split, else straight from the teachers. The best
    sub-ensembles are chosen on the validation rows; without labels there, they are null.

    Args:
        run: a run's or a chain's folder or name; the latest by default.
        split: test by default, or validation where there is no test.
        shifts: evaluate every shift of the split too, in five severities, for which the teachers themselves are asked.
        trust: load pickled checkpoints that name arbitrary globals.

    Returns:
        The document that `evaluate --json` prints; it is also kept in the run, `evaluations/SPLIT.json`, with the
        figures of each row beside it in `.npz`, where that can be written. Of a chain the student is the last
        generation; `models` has each of them, and BANE, the averages of the first 2, 3, ... generations' predictions,
        as `bane-2`, `bane-3`, ....

    Raises:
        EdistillError: no such run or split; the data is not what the cache was made from, or not what the
            student takes; the members are not those of the run.
    """
    progress = progress or Silent()
    found = find(Path(settings.output.runs), run)
    if isinstance(found, Run):
        (document,) = _evaluated(settings, [found], split, shifts, trust, progress)
        return document
    return _of_chain(settings, found, split, shifts, trust, progress)


def evaluate_together(
    settings: Settings,
    runs: Sequence[str],
    *,
    split: str | None = None,
    shifts: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare several runs of one ensemble with it, and so with each other; see `evaluate`.

    The members are read or asked once for all runs.

    Args:
        runs: folders or names.

    Returns:
        {"schema", "task", "split", "rows", "runs"}: `runs` are the documents of each, which are kept as `evaluate`
        keeps one.

    Raises:
        EdistillError: as for `evaluate`; or a run is given twice, or they differ in task, members or training data.
    """
    found = find_runs(Path(settings.output.runs), runs)
    documents = _evaluated(settings, found, split, shifts, trust, progress or Silent())
    return {key: documents[0][key] for key in ("schema", "task", "split", "rows")} | {"runs": documents}


def _evaluated(
    settings: Settings, runs: Sequence[Run], split: str | None, shifts: bool, trust: bool, progress: Progress
) -> list[dict[str, Any]]:
    """Each run's document; they are kept once all are known."""
    refuse_unlike(settings, runs)
    evaluation = _evaluation(settings, runs, {}, split, shifts, trust, progress)
    names = [run.folder.name for run in runs]
    documents = [
        evaluation.document(run, index, name if names.count(name) == 1 else str(run.folder))
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    for index, (run, document) in enumerate(zip(runs, documents, strict=True)):
        _keep(evaluation, run.folder, {"student": (index, run)}, document, progress)
    return documents


def _of_chain(
    settings: Settings, chain: Chain, split: str | None, shifts: bool, trust: bool, progress: Progress
) -> dict[str, Any]:
    """The document of all generations and their averages, kept in the chain's folder."""
    refuse_unlike(settings, chain.runs[:1])
    count = len(chain.runs)
    if count < chain.planned:
        progress.note(f"{chain.folder} has {count} of its {chain.planned} generations so far.")
    averages = {f"bane-{size}": tuple(range(size)) for size in range(2, count + 1)}
    evaluation = _evaluation(settings, chain.runs, averages, split, shifts, trust, progress)
    generations = {generation_name(index + 1): index for index in range(count)}
    models: dict[str, Model] = {**generations, **{name: name for name in averages}}
    document = evaluation.document(chain.runs[-1], count - 1, chain.folder.name, models)
    document["calibrated"] = any(run.calibration is not None for run in chain.runs)
    students = {name: (index, chain.runs[index]) for name, index in generations.items()}
    _keep(evaluation, chain.folder, students, document, progress)
    return document


def _keep(
    evaluation: Evaluation,
    of: Path,
    students: Mapping[str, tuple[int, Run]],
    document: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Keep a document in the folder of a run or a chain, or say why not: the figures are known all the same.

    Args:
        students: its runs by the names their students get, each with its position.

    Raises:
        EdistillError: a run was replaced or calibrated otherwise since it was opened, and the figures are of no run.
    """
    runs = [run for _, run in students.values()]
    again = f"The figures are not kept in {of}"
    try:
        with ExitStack() as locks:
            for folder in dict.fromkeys((*(run.folder for run in runs), of)):
                locks.enter_context(one_writer(folder, patience=PATIENCE))
            for run in runs:
                run.refuse_replaced()
            evaluation.keep(of, students, document)
    except BusyError as busy:
        for run in runs:
            run.refuse_replaced()
        progress.warn(f"{again}. {busy}")
    except OSError as error:
        progress.warn(f"{again}: {error.strerror or error}. To keep them, mend that and run the command again.")


def _evaluation(
    settings: Settings,
    runs: Sequence[Run],
    averages: Mapping[str, Sequence[int]],
    split: str | None,
    shifts: bool,
    trust: bool,
    progress: Progress,
) -> Evaluation:
    """All that there is to find of runs beside the ensemble of the first of them."""
    settings = beside_its_teachers(settings, runs[0], trust, progress)
    split = split or next((name for name in ("test", "validation") if name in settings.splits()), "test")
    source = open_for(runs, settings, split)
    elsewhere = {name: open_for(runs, settings, name) for name in settings.splits() if name.startswith("ood/")}
    answers = Answers(settings, runs[0], trust, progress)
    if shifts and not answers.at_hand:
        raise EdistillError(
            f"--shifts asks the members about distorted rows, and there is no {settings.teachers.path}. Put "
            "the teachers back, or leave --shifts out."
        )
    comparison = Comparison(runs, answers, progress, averages)
    _choose_subensembles(comparison, settings, split, progress)
    return Evaluation(
        task=runs[0].architecture.task.key,
        members=tuple(member.name for member in answers.members),
        split=split,
        main=comparison.on(split, source),
        ood={name.removeprefix("ood/"): comparison.on(name, outside) for name, outside in elsewhere.items()},
        shifts=comparison.shifted(split, source) if shifts else None,
        levels={name: levels(name, source.kind) for name in shifts_for(source.kind)},
        costs=comparison.costs(source),
        chosen=comparison.chosen,
    )


def _choose_subensembles(comparison: Comparison, settings: Settings, split: str, progress: Progress) -> None:
    """Choose on the validation rows, or say why not: without this baseline the rest still stands."""
    members = len(comparison.answers.members)
    if members == 1:  # a teacher, whom nobody expects to have parts
        return None
    if members <= min(SIZES.values()):
        return progress.note(f"No sub-ensembles: the ensemble has {members} members, and a part of it fewer.")
    if "validation" not in settings.splits():
        return progress.note("No sub-ensembles: data.validation, on which they would be chosen, is not set.")
    try:
        source = open_for(comparison.runs, settings, "validation")
        if source.labels is None:
            return progress.note("No sub-ensembles: data.validation, on which they would be chosen, has no labels.")
        comparison.choose(source, source.labels)
    except EdistillError as error:
        return progress.warn(f"No sub-ensembles, since they are chosen on validation rows. {error}")
    if split == "validation":
        progress.note("The sub-ensembles were chosen on these very rows, so their figures are too good.")
    return None
