"""What a training reads: rows, and the members' outputs for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ensemble_distill.methods.method import Batch, Labels
from ensemble_distill.predictive.answered import answered, those_who_answer
from ensemble_distill.predictive.protocol import Average, Predictive
from ensemble_distill.predictive.sampled import Sampled
from ensemble_distill.runtime.loading import batches
from ensemble_distill.tasks import Task
from ensemble_distill.training.order import Every, Order, Steps
from ensemble_distill.training.rows import CachedRows, Rows, TeacherOutputs, collate


@dataclass(frozen=True)
class Pooling:
    """How the members' outputs become one prediction.

    Attributes:
        weights: (M,), summing to 1; None for equal weights.
        partial: whether members leave some rows unanswered; these are NaN in their outputs.
    """

    task: Task
    weights: Tensor | None = None
    average: Average = "probabilities"
    partial: bool = False
    sampled: bool = False  # whether the outputs cover drawn classes only

    def answered(self, outputs: Tensor) -> Tensor:
        """Whether some member with a positive weight gives each answer, (A,), from outputs (A, M, W)."""
        there = answered(outputs)
        return (there if self.weights is None else there & (self.weights.to(there.device) > 0)).any(1)

    def predictive(self, outputs: Tensor) -> Predictive:
        """Outputs (A, M, W) as M distributions per answer.

        The weights are a copy, since a loss is anyone's code. If `partial`, they are (A, M), with 0 where a member does
        not answer.
        """
        weights = None if self.weights is None else self.weights.clone()
        if self.sampled:
            return Sampled.of(outputs, weights)
        if self.partial:
            outputs, weights = those_who_answer(outputs, weights)
        return self.task.members_family().predictive(outputs, weights, self.average)


@dataclass(frozen=True)
class Feed:
    """The rows of a training in their order, with the members' outputs.

    Attributes:
        device: the student's. Rows stay on the CPU; `batch` and `inputs` move them.
        workers: processes that render rows; 0 for this process.
    """

    rows: CachedRows
    outputs: TeacherOutputs
    order: Order
    pooling: Pooling
    device: torch.device
    workers: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, as the student sees it."""
        return self.rows[0, 0].x.shape

    def first_rows(self) -> Tensor:
        """The first and the last row in their first view, (2, …), on the device."""
        return collate([self.rows[at, 0] for at in (0, len(self.rows) - 1)]).x.to(self.device)

    @property
    def keeps_rows(self) -> bool:
        """Whether each row of a view is rendered only once, not at every step."""
        return self.workers == 0 and self.rows.kept

    def steps(self, start: int, stop: int) -> Iterator[Rows]:
        """The rows of steps `start` to `stop` − 1."""
        return self._loaded(Steps(self.order, start, stop))

    def of_step(self, step: int) -> Rows:
        """The rows of one step, rendered in this process."""
        return collate([self.rows[index] for index in self.order.batch(step)])

    def every(self, limit: int) -> Every:
        """Each row in each view once, but at most `limit` of them; the solves before a stage read these."""
        return Every(self.order, limit)

    def of(self, every: Every) -> Iterator[Rows]:
        return self._loaded(every)

    def inputs(self, every: Every) -> Iterator[Tensor]:
        """The inputs alone, (B, …), on the device."""
        for rows in self.of(every):
            yield rows.x.to(self.device, non_blocking=True)

    def sample(self, limit: int, parts: int, largest: int) -> list[list[Tensor]]:
        """Inputs (B, …) of at most `limit` evenly spaced rows: a list of batches per view.

        All views have the same rows.

        Args:
            parts: how many batches a view should have at least, if it has that many rows.
            largest: maximum rows per batch.
        """
        size = min(largest, max(1, len(self.every(limit).rows) // parts))
        every = Every(replace(self.order, batch_size=size), limit)
        found = [rows.x for rows in batches(self.rows, every, collate, 0, self.device)]
        a_view = len(found) // every.epochs
        return [found[start : start + a_view] for start in range(0, len(found), a_view)]

    def batch(self, rows: Rows) -> Batch:
        """The members' outputs and the labels of the rows, on the device. Each call returns new tensors."""
        task, counted = self.pooling.task, self._counted(rows)
        said = task.each_answer(self.outputs.read(rows.indices), counted)
        teacher = self.pooling.predictive(said.to(self.device, non_blocking=True))
        if not bool(rows.known.any()):
            return Batch(teacher, None)
        labels = [task.each_label(y, counted) for y in (rows.own, rows.partner)]
        labels += [task.each_of_row(values, counted) for values in (rows.weight, rows.known)]
        return Batch(teacher, Labels(*(y.to(self.device, non_blocking=True, copy=True) for y in labels)))

    def each_answer(self, said: Tensor, rows: Rows) -> Tensor:
        """Outputs (B, H, *shape) for the rows, reshaped to one entry per answer, in the order of `batch`."""
        return self.pooling.task.each_answer(said, self._counted(rows))

    def _counted(self, rows: Rows) -> Tensor:
        """The labels that decide which positions count; in a row without labels, all do."""
        unknown = ~rows.known.view(-1, *(1,) * (rows.own.dim() - 1))
        return rows.own.masked_fill(unknown, 0)

    def _loaded(self, sampler: Every | Steps) -> Iterator[Rows]:
        return batches(self.rows, sampler, collate, self.workers, self.device)
