"""`edistill calibrate`: bring a run's uncertainty to its ensemble's, on rows that no member was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.answers import Answers, beside_its_teachers
from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.figures import Figures
from ensemble_distill.evaluation.fit import at_limit, fit
from ensemble_distill.evaluation.rows import fidelity_rows, member_rows, prediction_rows
from ensemble_distill.evaluation.tasks import TASKS
from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runs.exports import stale_exports
from ensemble_distill.runs.finding import find_run
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.spread import spread
from ensemble_distill.settings import Settings
from ensemble_distill.students.own_row import refuse_dependent
from ensemble_distill.students.student import Student
from ensemble_distill.training.plain_rows import plain_batches

NUMBERS = 2**25  # of the members' outputs, which are held at once; rows beyond are left out, evenly spread
FEWEST = 20  # rows; fewer say nothing of a distribution's width
WORSE = 1.1  # of the mean KL: less is noise between the two halves of the rows


@dataclass(frozen=True)
class CalibrationReport:
    """What was fitted, and what it did.

    Attributes:
        split, rows: what it was fitted on.
        calibration: what was fitted; None when it was taken away.
        before, after: fidelity figures on those rows, `after` of each half by a fit on the other: what to expect
            elsewhere.
        stale: files that were exported before, and say what the run said then.
    """

    folder: Path
    split: str
    rows: int
    calibration: Calibration | None
    before: Figures
    after: Figures
    stale: tuple[Path, ...]


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
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: no run, rows that members were trained on, too few rows, or none to remove.
    """
    progress = progress or Silent()
    found = find_run(Path(settings.output.runs), run)
    if remove:
        with one_writer(found.folder):
            found.forget_calibration()
        return CalibrationReport(found.folder, "", 0, None, {}, {}, stale_exports(found.folder))
    name, source = _unseen(settings, found, split)
    answers = Answers(beside_its_teachers(settings, found, trust, progress), found, trust, progress)
    pairs = _ask(answers, found, source, name, progress)
    calibration = pairs.fitted(slice(None))
    halves = (slice(0, None, 2), slice(1, None, 2))
    crossed = [pairs.figures(here, pairs.fitted(there)) for here, there in (halves, halves[::-1])]
    with one_writer(found.folder):
        found.refuse_other_weights()
        found.keep_calibration(calibration)
    report = CalibrationReport(
        folder=found.folder,
        split=name,
        rows=len(pairs.raw),
        calibration=calibration,
        before=pairs.figures(slice(None), Calibration()),
        after=_means(crossed),
        stale=stale_exports(found.folder),
    )
    _warn_of_harm(report, calibration, progress)
    return report


def _warn_of_harm(report: CalibrationReport, calibration: Calibration, progress: Progress) -> None:
    """Tell where a calibration is none that helps: a student that is too far off is not mended by two numbers."""
    told = [
        f"{name} ended at the limit of what is searched, {getattr(calibration, name):.4g}"
        for name in at_limit(calibration)
    ]
    before, after = (figures.get("mean_kl") for figures in (report.before, report.after))
    if before is not None and after is not None and after > WORSE * before:
        told.append(f"the mean KL from the ensemble rises from {before:.4g} to {after:.4g}")
    if told:
        progress.warn(
            f"This calibration may do harm: {'; '.join(told)}. Train the student on, or take it away: "
            f"edistill calibrate {report.folder} --remove."
        )


def _unseen(settings: Settings, run: Run, split: str | None) -> tuple[str, Source]:
    """The split to calibrate on. Raises EdistillError when the run was trained on it, or it has too few rows."""
    name = split or ("calibration" if "calibration" in settings.splits() else "validation")
    source = open_for([run], settings, name)
    if source.digest in (run.provenance.trained_on.get(trained) for trained in ("train", "transfer")):
        raise EdistillError(
            f"data.{name} is what {run.folder} was trained on, where members agree more than elsewhere. Set "
            "data.calibration to rows that no member was trained on."
        )
    if len(source) < FEWEST:
        raise EdistillError(f"data.{name} has {len(source)} rows, and {FEWEST} are the fewest to calibrate on.")
    return name, source


def _ask(answers: Answers, run: Run, source: Source, name: str, progress: Progress) -> _Pairs:
    """What the ensemble and the student say of the rows, evenly spread ones where they are many.

    Raises:
        EdistillError: the student's prediction of a row is no function of it, or not finite.
    """
    student = run.student(calibrated=False, trust=answers.trusted).to(answers.device)
    progress.start(f"asking ensemble and student on {name}", total=len(source), unit="rows")
    outputs, raw = [], []
    keep = _kept(len(source), len(run.provenance.members) * run.architecture.task.width)
    rows = zip(
        plain_batches(source, run.architecture.preprocessing, answers.workers, answers.device),
        answers.of(name, source),
        strict=True,
    )
    for (batch, x), said in rows:
        if batch.start == 0:
            refuse_dependent(student, x.to(answers.device), str(run.folder))
        with torch.no_grad():
            mine = student(x.to(answers.device)).cpu().double()
        here = torch.from_numpy(keep[batch.start : batch.stop])
        outputs.append(said[here])
        raw.append(mine[here])
        progress.advance(len(batch))
    progress.finish()
    pairs = _Pairs(answers, student.cpu(), run.architecture.task.key, torch.cat(outputs), torch.cat(raw))
    if not pairs.raw.isfinite().all():
        raise EdistillError(f"The student of {run.folder} gives numbers that are not finite. Train it again.")
    return pairs


def _kept(rows: int, numbers: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(N,) whether a row is used: all of them, or as many evenly spread ones as hold `NUMBERS` numbers."""
    count = min(rows, max(FEWEST, NUMBERS // numbers))
    keep = np.zeros(rows, bool)
    keep[spread(rows, count)] = True
    return keep


@dataclass(frozen=True)
class _Pairs:
    """What the ensemble and the student said of N rows."""

    answers: Answers
    student: Student
    task: str
    outputs: Tensor  # (N, M, W)
    raw: Tensor  # (N, H, W)

    def fitted(self, rows: slice) -> Calibration:
        return fit(self.answers.predictive(self.outputs[rows]), self._said(rows))

    def figures(self, rows: slice, calibration: Calibration) -> Figures:
        task, ensemble = TASKS[self.task], cast(Predictive, self.answers.predictive(self.outputs[rows]))
        student = self._said(rows).calibrated(calibration)
        theirs = prediction_rows(task, ensemble, None)
        return fidelity(
            theirs,
            member_rows(task, ensemble, None),
            prediction_rows(task, student, None),
            fidelity_rows(ensemble, student),
            task.unit(theirs),
        )

    def _said(self, rows: slice) -> Predictive:
        return self.student.predictive(self.raw[rows])


def _means(figures: Sequence[Mapping[str, float | None]]) -> Figures:
    means: Figures = {}
    for name in figures[0]:
        known = [value for each in figures if (value := each[name]) is not None]
        means[name] = sum(known) / len(known) if len(known) == len(figures) else None
    return means
