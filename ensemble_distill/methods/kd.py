"""Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531): one head that learns the ensemble's prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor

from ensemble_distill.methods.closed_form import (
    AFTER,
    SHRINKAGE,
    ClosedForm,
    Shrinkage,
    SolveAfter,
    idle_ridge,
    settled_form,
    solved_heads,
    solved_on_the_way,
    together,
)
from ensemble_distill.methods.method import Batch, Loss, Method, Options, Stage, Step, softened
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runtime import ranks
from ensemble_distill.tasks import Task


def pooled_loss(temperature: float) -> Loss:
    """T² KL(pooled members ‖ the student's single head), averaged over rows, with both sides at temperature T."""

    def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
        target = batch.teacher.tempered(temperature).pooled()
        return temperature**2 * ranks.mean_of_all(target.kl(student.tempered(temperature)))

    return loss


class KDOptions(Options):
    temperature: float = Field(
        1.0, ge=0.05, le=100, description="Softens teacher and student; the loss is scaled by its square."
    )
    closed_form: ClosedForm = None
    solve_after: SolveAfter = AFTER
    ridge: Shrinkage = SHRINKAGE


class KnowledgeDistillation(Method):
    """One head that imitates the pooled prediction.

    For classes, the target pools the members after softening each by T (section 2 of the paper, where T² keeps
    gradients comparable across T). For regression, it is the normal distribution with the mixture's moments. There T
    multiplies the variances before the moments are taken, so the student's variance becomes data + model / T, from the
    members' data and model uncertainty; T = 1 is exact.

    With `closed_form`, the default for classes and labels, the head is solved for during training; see
    `solved_on_the_way`.
    """

    title = "one head that learns what the ensemble predicts; its members' disagreement is lost"
    paper = "Hinton et al. 2015, arXiv:1503.02531"
    outputs = "one distribution"
    Options: ClassVar[type[BaseModel]] = KDOptions

    def settled(self, options: BaseModel, task: type[Task], from_members: bool) -> BaseModel:
        return options.model_copy(update=settled_form(options, from_members or task.solves))

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        return idle_ridge(options)

    def beyond_samples(self, options: BaseModel, pooled_top: bool) -> str | None:
        return softened(options)

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        assert isinstance(options, KDOptions)
        temperature = options.temperature
        stage = Stage("mean", 1.0, lambda student: student, pooled_loss(temperature))
        return solved_on_the_way(options, stage, solved_heads(options, together(temperature)))


METHOD = KnowledgeDistillation
