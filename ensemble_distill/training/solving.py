"""The solves before the first step of a stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.method import Batch, Stage
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.starts.from_members import FromMembers
from ensemble_distill.students.student import Student
from ensemble_distill.training.feed import Feed
from ensemble_distill.training.forward import Forward
from ensemble_distill.training.order import Every
from ensemble_distill.training.rows import Rows

# rows, counted once per view, to solve from: FITTED for each weight of an output, between FEWEST and MOST
FITTED, FEWEST, MOST = 128, 2**14, 2**19


@dataclass(frozen=True)
class Solving:
    """Solves from the training rows. The student is in training mode before and after.

    With several processes, the first one solves for all.
    """

    feed: Feed
    forward: Forward
    progress: Progress

    def start(self, student: Student, start: FromMembers) -> None:
        """Start the heads from the members, then drop the members, which are large."""
        every = self.feed.every(start.rows(self.feed.shape))
        self.progress.start("starting from the members", every.count, "rows")
        student.eval()
        kept = ranks.of_first(lambda: start(student, self._inputs(every)))
        ranks.as_first(student)
        start.members.clear()
        self.forward.learning(student)
        self.progress.finish()
        given = "what the members' last stages are given"
        self.progress.note(
            f"How much adapters say of {given} could not be measured on so few rows."
            if math.isnan(kept)
            else f"Adapters say {100 * kept:.3g} % of the variance of {given}."
        )

    def fit(self, student: Student, stage: Stage) -> bool:
        """Solve for what the stage solves for; False if that is nothing."""
        if stage.fit is None:
            return False
        if not student.heads.last.weight.requires_grad:
            self.progress.note("The output layer is the teacher's (student.share), so it is not solved for.")
            return False
        every = self.feed.every(min(max(FITTED * student.heads.last.weight.shape[1], FEWEST), MOST))
        self.progress.start(f"solving for {stage.name}", every.count, "rows")
        student.eval()  # with running statistics, as in use
        with torch.no_grad():
            ranks.of_first(partial(stage.fit, student, self._features(student, every)))
        ranks.as_first(student)
        self.forward.learning(student)
        self.progress.finish()
        return True

    @torch.no_grad()
    def refuse_not_finite(self, student: Student) -> None:
        """Raise EdistillError if a solved student's outputs are not finite. Without a step, no loss would show it."""
        student.eval()
        for rows in self.feed.of(self.feed.every(FEWEST)):
            finite = self.forward.raw(student, rows.x).isfinite().all(-1)
            if not finite.all():
                row, head = (int(at) for at in (~finite).nonzero()[0])
                raise EdistillError(
                    f"What was solved for says numbers that are not finite: head {head}, at training row "
                    f"{rows.indices[row, 0]}. Look at the weights of the member that it starts from (student.init), or "
                    "leave that out."
                )

    def _each(self, features: Tensor, rows: Rows) -> Tensor:
        """Features (B, L, F) as one row per position, in the order of the batch."""
        return self.feed.each_answer(features.unsqueeze(1), rows)[:, 0]

    def _inputs(self, every: Every) -> Iterator[Tensor]:
        for x in self.feed.inputs(every):
            yield x
            self.progress.advance(len(x))

    def _features(self, student: Student, every: Every) -> Iterator[tuple[Tensor, Batch]]:
        for rows in self.feed.of(every):
            features = self.forward.features(student, rows.x)
            yield features if student.positions is None else self._each(features, rows), self.feed.batch(rows)
            self.progress.advance(len(rows.indices))
