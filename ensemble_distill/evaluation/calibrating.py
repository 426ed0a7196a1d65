"""Calibrating a run's uncertainty to its ensemble's: the rows to fit on, the fit, and a report of its effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.ensemble import Ensemble
from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.fit import at_limit, fit
from ensemble_distill.evaluation.given import Given
from ensemble_distill.evaluation.names import HONEST
from ensemble_distill.evaluation.rows import as_targets, fidelity_rows, member_rows, prediction_rows
from ensemble_distill.evaluation.students import Students
from ensemble_distill.facts import HELD_OUT, TRAINED, Calibration
from ensemble_distill.predictive.answered import answering, matched
from ensemble_distill.predictive.of_logits import OfLogits
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runs.exports import stale_exports
from ensemble_distill.runs.folder import flags_of
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.grown import Grown
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.spread import spread
from ensemble_distill.runtime.words import shell
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.tasks.task import Task

NUMBERS = 2**25  # of the members' outputs held in memory; of more rows, evenly spaced ones are used
FEW = 2**21  # of those numbers, for fits that take many tries and would be slow on more
FEWEST = 20  # answers; fewer say nothing about a distribution's width
MOVED = 1e-3  # nats, averaged over rows, by which a spread may move the pooled prediction
WORSE, NOISE = 1.1, 5.0  # a mean KL that grows by less than WORSE + NOISE ÷ rows is noise between the two halves


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration and its effect.

    Attributes:
        folder: the run.
        split, rows: the split it was fitted on, and the number of answers.
        counted: what `rows` counts, "positions" if a row has several answers.
        calibration: the fitted calibration; None if it was removed.
        before, after: fidelity figures on those rows. `after` evaluates each half with a fit on the other half: what to
            expect on other rows.
        stale: files exported from an earlier state of the run.
    """

    folder: Path
    split: str
    rows: int
    calibration: Calibration | None
    before: Figures
    after: Figures
    stale: tuple[Path, ...]
    counted: str = "rows"

    @property
    def export_again(self) -> str:
        """The command that exports the stale files again."""
        return f"edistill export {shell(self.folder)} {flags_of(file.name for file in self.stale)}"

    def to_json(self) -> dict[str, Any]:
        """The document of `calibrate --json`."""
        return asdict(self)


def calibrate_run(given: Given, run: Run, split: str | None, by_row: bool = False) -> CalibrationReport:
    """Fit a calibration and save it in the run.

    Args:
        given: what the command has opened.
        run: the run.
        split: a split that no member was trained on; by default, the first of calibration, validation and held-out.
        by_row: whether to fit a power as well; see `fit`.

    Raises:
        EdistillError: the run was trained on the rows, or there are too few.
    """
    known = [one for one in ("calibration", "validation", HELD_OUT) if one in given.splits]
    name = split or (known[0] if known else "validation")
    source = open_for([run], given.splits, name)
    refuse_seen(run, source, name)
    task = run.architecture.task
    refuse_few(task, source, name)
    pairs = _ask(given, run, source, name)
    refuse_few_answered(task, len(pairs.raw), name)
    calibration = pairs.fitted(slice(None), by_row)
    halves = (slice(0, None, 2), slice(1, None, 2))
    alike = bool(calibration.power)  # a half may find a power where all rows find none
    crossed = [pairs.figures(here, pairs.fitted(there, alike)) for here, there in (halves, halves[::-1])]
    with one_writer(run.folder):
        run.refuse_other_weights()
        run.keep_calibration(calibration)
    report = CalibrationReport(
        folder=run.folder,
        split=name,
        rows=len(pairs.raw),
        calibration=calibration,
        before=pairs.figures(slice(None), Calibration()),
        after=_means(crossed),
        stale=stale_exports(run.folder),
        counted=task.answers_called,
    )
    _warn_of_harm(report, calibration, pairs.moved(calibration), given.progress)
    if by_row and not calibration.power:
        given.progress.note(
            "No power by row helps on rows that it was not fitted on, so this is the calibration without --by-row."
        )
    if name == HELD_OUT:
        given.progress.note(HONEST)
    if not pairs.several:
        given.progress.note(
            f"One member answers each row of {name}, so how far members differ is unknown: the spread is 1, and only "
            "the student's confidence in that member's answers was fitted."
        )
    return report


def forget_calibration(run: Run) -> CalibrationReport:
    """Remove a run's calibration. Raises EdistillError if it has none."""
    with one_writer(run.folder):
        run.forget_calibration()
    return CalibrationReport(run.folder, "", 0, None, {}, {}, stale_exports(run.folder))


def refuse_seen(run: Run, source: Source, name: str) -> None:
    """Raise EdistillError if the run was trained on these rows."""
    if source.digest in (run.provenance.trained_on.get(trained) for trained in TRAINED):
        raise EdistillError(
            f"data.{name} is what {run.folder} was trained on, where members agree more than elsewhere. Set "
            "data.calibration to rows that no member was trained on."
        )


def refuse_few(task: Task, source: Source, name: str) -> None:
    """Raise EdistillError if a split has too few answers to calibrate on."""
    count = task.answers_in(len(source), source.labels)
    if count < FEWEST:
        raise EdistillError(
            f"data.{name} has {count} {task.answers_called}, and {FEWEST} are the fewest to calibrate on. Set "
            "data.calibration to more rows that no member was trained on."
        )


def refuse_few_answered(task: Task, count: int, name: str) -> None:
    """Raise EdistillError if members give too few answers to calibrate on."""
    if count < FEWEST:
        raise EdistillError(
            f"Members answer {count} {task.answers_called} of {name}, and {FEWEST} are the fewest to calibrate on. Set "
            "data.calibration to more rows that members answer and were not trained on."
        )


@dataclass(frozen=True)
class _Pairs:
    """The outputs of the ensemble and the student for N answers."""

    ensemble: Ensemble
    student: Student
    outputs: Tensor  # (N, M, W)
    raw: Tensor  # (N, H, W)

    def fitted(self, rows: slice, by_row: bool) -> Calibration:
        if not by_row:
            return fit(*self._pair(rows))
        start, step = rows.start or 0, rows.step or 1
        wide = 2 * step * math.ceil(self.outputs[rows].numel() / FEW)
        halves = self._pair(slice(start, None, wide)), self._pair(slice(start + step, None, wide))
        return fit(*self._pair(rows), halves=halves)

    def _pair(self, rows: slice) -> tuple[Predictive, Predictive]:
        return self.ensemble.predictive(self.outputs[rows]), self._said(rows)

    @property
    def several(self) -> bool:
        """Whether some row is answered by several members, or by all."""
        count = answering(self.ensemble.predictive(self.outputs))
        return count is None or bool((count > 1).any())

    def figures(self, rows: slice, calibration: Calibration) -> Figures:
        task, ensemble = self.ensemble.task, self.ensemble.predictive(self.outputs[rows])
        student = self._said(rows).calibrated(calibration)
        theirs = prediction_rows(task, ensemble, None)
        return fidelity(
            theirs,
            member_rows(task, ensemble, None),
            prediction_rows(task, matched(student, ensemble), None),
            fidelity_rows(ensemble, student),
            task.unit(theirs),
        )

    def moved(self, calibration: Calibration) -> float:
        return _moved(self._said(slice(None)), calibration)

    def _said(self, rows: slice) -> Predictive:
        return self.student.predictive(self.raw[rows])


def _ask(given: Given, run: Run, source: Source, name: str) -> _Pairs:
    """The outputs of ensemble and student on rows that some member answers; of many rows, evenly spaced ones."""
    ensemble, students = Ensemble(given, run), Students(given, [run], calibrated=False)
    given.progress.start(f"asking ensemble and student on {name}", total=len(source), unit="rows")
    outputs, raw = Grown(), Grown()
    task = ensemble.task
    keep = _kept(len(source), len(ensemble.members) * math.prod(task.shape))
    for (rows, (mine,)), said in zip(students.raw(source, name), ensemble.outputs(name, source), strict=True):
        here = torch.from_numpy(keep[rows.start : rows.stop])
        labels = None if source.labels is None else as_targets(source.labels[rows.start : rows.stop])[here]
        theirs = task.each_answer(said[here], labels)
        there = ensemble.answered(theirs)
        outputs.add(theirs[there])
        raw.add(task.each_answer(mine[here], labels)[there])
        given.progress.advance(len(rows))
    given.progress.finish()
    (student,) = students.modules
    return _Pairs(ensemble, student.cpu(), *(torch.from_numpy(grown.all()) for grown in (outputs, raw)))


def _kept(rows: int, numbers: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each row is used, (N,): all rows, or as many evenly spaced ones as hold `NUMBERS` numbers."""
    count = min(rows, max(FEWEST, NUMBERS // numbers))
    keep = np.zeros(rows, bool)
    keep[spread(rows, count)] = True
    return keep


def _moved(said: Predictive, calibration: Calibration) -> float:
    """How far the spread moves the pooled prediction of heads that emit logits: KL in nats, averaged over rows."""
    if not isinstance(said, OfLogits):
        return 0.0
    kept = said.tempered(calibration.temperature)
    return float(fidelity_rows(kept, said.calibrated(calibration))["mean_kl"].mean())


def _means(figures: Sequence[Mapping[str, float | None]]) -> Figures:
    """The mean of each figure over several sets of figures; None if one of them is None."""
    means: Figures = {}
    for name in figures[0]:
        known = [value for each in figures if (value := each[name]) is not None]
        means[name] = sum(known) / len(known) if len(known) == len(figures) else None
    return means


def _warn_of_harm(report: CalibrationReport, calibration: Calibration, moved: float, progress: Progress) -> None:
    """Warn if a calibration does not help: a few numbers do not fix a student that is too far off.

    Args:
        report: the report of the calibration.
        calibration: the calibration.
        moved: how far it moves the pooled prediction; see `_moved`.
        progress: where to warn.
    """
    told = [
        f"{name} ended at the limit of the search, {getattr(calibration, name):.4g}" for name in at_limit(calibration)
    ]
    before, after = (figures.get("mean_kl") for figures in (report.before, report.after))
    if before is not None and after is not None and after > (WORSE + NOISE / report.rows) * before:
        told.append(f"the mean KL from the ensemble rises from {before:.4g} to {after:.4g}")
    if moved > MOVED:
        told.append(
            f"the spread moves what the heads predict together, by {moved:.2g} nats (at most {MOVED:g} is expected), "
            "since they differ too much"
        )
    if told:
        progress.warn(
            f"This calibration may do harm: {'; '.join(told)}. Train the student longer, or remove it: "
            f"edistill calibrate {shell(report.folder)} --remove."
        )
