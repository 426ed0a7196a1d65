"""The student without teachers: trained on the labels alone, as a baseline for every other method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.closed_form import (
    AFTER,
    SHRINKAGE,
    ClosedForm,
    Shrinkage,
    SolveAfter,
    idle_ridge,
    members_say,
    settled_form,
    solved_heads,
    solved_on_the_way,
)
from ensemble_distill.methods.method import Batch, Fit, Method, Options, Stage, Step
from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.runtime import ranks
from ensemble_distill.students.student import Student
from ensemble_distill.tasks import Task


def labels_loss(batch: Batch, student: Predictive) -> Tensor:
    """−ln q(y) of the student's pooled prediction, averaged over the labeled rows of all ranks; 0 if there are none."""
    known = torch.zeros(()) if batch.labels is None else batch.labels.known.sum()
    return ranks.share_of_all(label_nll(batch, student).sum(), known.to(student.means()), 1.0)


def label_nll(batch: Batch, student: Predictive) -> Tensor:
    """−ln q(y) of each row, (B,); 0 for rows without a label, yet always connected to the student's parameters."""
    if batch.labels is None:
        return 0.0 * student.means().flatten(1).sum(1)
    return batch.labels.nll(student)[:, 0] if student.members == 1 else batch.labels.pooled_nll(student)


def solved_means(options: BaseModel) -> Fit | None:
    """A fit that sets a regression head's means to the least-squares map from its inputs to the labels.

    Its variance becomes that of a fresh head. None if `closed_form` is off.
    """
    solve = solved_heads(options, members_say)
    if solve is None:
        return None

    def fit(student: Student, rows: Iterable[tuple[Tensor, Batch]]) -> None:
        width = student.heads.last.bias.shape[-1]
        solve(student, _labels_told(student.family, width, rows))

    return fit


def _labels_told(family: Family, width: int, rows: Iterable[tuple[Tensor, Batch]]) -> Iterator[tuple[Tensor, Batch]]:
    """The labeled rows, each with a normal distribution about its label as its target."""
    for features, batch in rows:
        if batch.labels is not None:
            known, targets = batch.labels.known, batch.labels.targets()
            fresh: Any = family.predictive(features.new_zeros(int(known.sum()), 1, width), None, "probabilities")
            yield features[known], Batch(replace(fresh, mean=targets[known].unsqueeze(1).to(features)), None)


class SupervisedOptions(Options):
    closed_form: ClosedForm = None
    solve_after: SolveAfter = AFTER
    ridge: Shrinkage = SHRINKAGE


class Supervised(Method):
    """The same student with the same views and budget, trained with −ln q(y) as its loss.

    What a distilled student achieves beyond this one, it owes to the ensemble. A transfer split without labels is left
    out.
    """

    title = "the same student on labels alone; the baseline that tells what distilling is worth"
    paper = "no paper: maximum likelihood"
    outputs = "one distribution"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    Options: ClassVar[type[BaseModel]] = SupervisedOptions

    def settled(self, options: BaseModel, task: type[Task], from_members: bool) -> BaseModel:
        """The options, with their defaults filled in.

        Raises:
            EdistillError: `closed_form` is on, and heads emit how likely each label is, not the labels themselves.
        """
        assert isinstance(options, SupervisedOptions)
        if options.closed_form and not task.says_labels:
            raise EdistillError(
                f"method.closed-form is on, and what a head says of {task.called} is how likely each is, for which "
                f"labels have no least squares; the task is {task.key}. Leave it out."
            )
        return options.model_copy(update=settled_form(options, from_members and task.says_labels))

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        return idle_ridge(options)

    def beyond_samples(self, options: BaseModel, pooled_top: bool) -> str | None:
        """None, since the method uses no teacher."""
        return None

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            return labels_loss(batch, student)

        stage = Stage("labels", 1.0, lambda student: student, loss)
        return solved_on_the_way(options, stage, solved_means(options))


METHOD = Supervised
