"""The student without its teachers: trained on the labels alone, as a baseline for every other method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from ensemble_distill.methods.method import Batch, Method, Stage, Step
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runtime import ranks


def labels_loss(batch: Batch, student: Predictive) -> Tensor:
    """−ln q(y) of what a student's heads predict together, the mean over the rows of all ranks that have a label; 0
    where none has."""
    known = torch.zeros(()) if batch.labels is None else batch.labels.known.sum()
    return ranks.share_of_all(label_nll(batch, student).sum(), known.to(student.means()), 1.0)


def label_nll(batch: Batch, student: Predictive) -> Tensor:
    """−ln q(y) of each row, (B,); 0 for those without a label, and still a function of the student."""
    if batch.labels is None:
        return 0.0 * student.means().flatten(1).sum(1)
    return batch.labels.nll(student)[:, 0] if student.members == 1 else batch.labels.pooled_nll(student)


class Supervised(Method):
    """The same student, the same views and the same budget, but −ln q(y) as its loss.

    What a distilled student has beyond this one is what the ensemble gave it. A transfer split without labels is left
    out.
    """

    title = "the same student on labels alone; the baseline that tells what distilling is worth"
    paper = "no paper: maximum likelihood"
    outputs = "one distribution"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            return labels_loss(batch, student)

        return (Stage("labels", 1.0, lambda student: student, loss),)


METHOD = Supervised
