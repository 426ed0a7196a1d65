"""Evaluating runs beside the ensemble that they learned from, from reading rows to saving the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ensemble_distill.data.shifts import levels, refuse_no_shift, shifts_for
from ensemble_distill.evaluation.choosing import choose
from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.ensemble import Ensemble
from ensemble_distill.evaluation.exported import ExportedRun
from ensemble_distill.evaluation.given import Given
from ensemble_distill.evaluation.keeping import keep_or_warn
from ensemble_distill.evaluation.measured import Measured
from ensemble_distill.evaluation.measuring import Bench, Model
from ensemble_distill.evaluation.names import HONEST, STUDENT
from ensemble_distill.evaluation.reference import references
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.evaluation.students import Students
from ensemble_distill.facts import HELD_OUT
from ensemble_distill.runs.args import limit_of
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runs.exports import exports_of, stale
from ensemble_distill.runs.folder import export_again, generation_name, run_of
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.words import shell

TORCH = "torch"


def evaluate_runs(given: Given, runs: Sequence[Run], split: str | None, shifts: bool) -> tuple[Evaluation, ...]:
    """The figures of each run, saved in its folder once all are known.

    Args:
        given: what the command has opened.
        runs: runs of one ensemble; see `refuse_unlike`.
        split, shifts: see `measure`.
    """
    return kept(given, runs, measure(given, runs, {}, split, shifts))


def kept(given: Given, runs: Sequence[Run], measured: Measured) -> tuple[Evaluation, ...]:
    """The figures of each run, which this saves in the run's folder."""
    names = [run.folder.name for run in runs]
    found = tuple(
        replace(
            measured.evaluation(
                index, name if names.count(name) == 1 else str(run.folder), calibrated=run.calibration is not None
            ),
            undone=_undone([run]),
            still_falling=run.provenance.still_falling,
            limit=limit_of(run.folder),
        )
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    )
    _tell_stale(runs, given.progress)
    for index, (run, evaluation) in enumerate(zip(runs, found, strict=True)):
        if not run.keeps:
            given.progress.note(_told_of_file(run))
        else:
            keep_or_warn(run.folder, {STUDENT: (index, run)}, measured, evaluation, given.progress)
    return found


def _undone(runs: Sequence[Run]) -> tuple[str, ...]:
    """For each calibrated run, the command that undoes the calibration; with its folder, which a name may not find."""
    return tuple(_command(run) for run in runs if run.calibration is not None)


def _command(run: Run) -> str:
    if run.keeps:
        return f"edistill calibrate {shell(run.folder)} --remove"
    own = run_of(run.folder)
    return "" if own is None else f"edistill calibrate {shell(own)} --remove, then {export_again(run.folder)}"


def _told_of_file(run: Run) -> str:
    if isinstance(run, ExportedRun) and run.served.runtime != TORCH:
        return (
            f"{run.folder} is asked and timed through {run.served.runtime}, all else by torch; its figures are not "
            "kept."
        )
    return f"{run.folder} is a file, and no run: its figures are not kept."


def evaluate_chain(given: Given, chain: Chain, split: str | None, shifts: bool) -> Evaluation:
    """The figures of all generations and of their averages, saved in the chain's folder."""
    count = len(chain.runs)
    if count < chain.planned:
        given.progress.note(f"{chain.folder} has {count} of its {chain.planned} generations so far.")
    averages = {f"bane-{size}": tuple(range(size)) for size in range(2, count + 1)}
    measured = measure(given, chain.runs, averages, split, shifts)
    generations = {generation_name(index + 1): index for index in range(count)}
    models: dict[str, Model] = {**generations, **{name: name for name in averages}}
    calibrated = any(run.calibration is not None for run in chain.runs)
    falling = [run.provenance.still_falling for run in chain.runs if run.provenance.still_falling is not None]
    found = replace(
        measured.evaluation(count - 1, chain.folder.name, calibrated, models),
        undone=_undone(chain.runs),
        still_falling=max(falling, default=None),
        limit=limit_of(chain.folder),
    )
    students = {name: (index, chain.runs[index]) for name, index in generations.items()}
    _tell_stale(chain.runs, given.progress)
    keep_or_warn(chain.folder, students, measured, found, given.progress)
    return found


def _tell_stale(runs: Sequence[Run], progress: Progress) -> None:
    """Warn of exported files that the figures do not describe, since they were made from another state of their run."""
    exports = [export for run in runs for export in (exports_of(run.folder) if run.keeps else [run.folder])]
    for export in {export.resolve(): export for export in exports}.values():  # a file may be named beside its run
        if (told := stale(export)) is not None:
            progress.warn(told)


def main_split(names: Iterable[str]) -> str:
    """The configured split to evaluate by default; "test" if none is suitable."""
    there = set(names)
    return next((name for name in ("test", "validation", HELD_OUT) if name in there), "test")


def measure(
    given: Given, runs: Sequence[Run], averages: Mapping[str, Sequence[int]], split: str | None, shifts: bool
) -> Measured:
    """Everything measured of runs beside their ensemble.

    Args:
        given: what the command has opened.
        runs: runs of one ensemble.
        averages: ensembles of the runs' students by name, as positions of runs.
        split: the split to evaluate; None for the default, `main_split`.
        shifts: whether to evaluate shifted rows, too.
    """
    split = split or main_split(given.splits)
    source = open_for(runs, given.splits, split)
    if split == HELD_OUT:
        given.progress.note(HONEST)
    if shifts:
        refuse_no_shift(source.kind, f"data.{split}")
    elsewhere = {name: open_for(runs, given.splits, name) for name in given.splits if name.startswith("ood/")}
    ensemble = Ensemble(given, runs[0])
    students = Students(given, runs)
    choice = choose(given, runs, ensemble, split)
    known = references(
        runs, students.modules, given.splits, given.device, given.workers, given.progress, evaluated=source
    )
    bench = Bench(ensemble, students, averages, choice.chosen, given.progress, known)
    return Measured(
        task=ensemble.task,
        members=tuple(member.name for member in ensemble.members),
        split=split,
        main=bench.on(split, source),
        ood={name.removeprefix("ood/"): bench.on(name, outside) for name, outside in elsewhere.items()},
        shifts=bench.shifted(split, source) if shifts else None,
        levels={name: levels(name, source.kind) for name in shifts_for(source.kind)},
        costs=bench.costs(source),
        choice=choice,
        references=known,
    )
