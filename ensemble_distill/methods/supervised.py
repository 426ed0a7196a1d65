"""The student without its teachers: trained on the labels alone, as a baseline for every other method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel
from torch import Tensor

from ensemble_distill.methods.method import Batch, Method, Stage, Step
from ensemble_distill.predictive.protocol import Predictive


class Supervised(Method):
    """The same student, the same views and the same budget, but −ln q(y) as its loss.

    What a distilled student has beyond this one is what the ensemble gave it. A transfer split without labels is left
    out. The mean is over the rows of a batch
    that have a label.
    """

    title = "the same student on labels alone; the baseline that tells what distilling is worth"
    paper = "no paper: maximum likelihood"
    outputs = "one distribution"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            labels = batch.labels
            assert labels is not None  # `needs` says so
            return labels.nll(student).mean(1).sum() / labels.known.sum().clamp_min(1)

        return (Stage("labels", 1.0, lambda student: student, loss),)


METHOD = Supervised
