"""Hydra (Tran et al. 2020, arXiv:2001.04694): one body and one head per member, each of which imitates its member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.closed_form import (
    SHRINKAGE,
    ClosedForm,
    Shrinkage,
    idle_ridge,
    members_say,
    settled_form,
    solved_heads,
)
from ensemble_distill.methods.kd import pooled_loss
from ensemble_distill.methods.method import Batch, Loss, Method, Options, Stage, Step, softened
from ensemble_distill.methods.supervised import labels_loss
from ensemble_distill.predictive.answered import matched
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runtime import ranks
from ensemble_distill.tasks import Task


def members_loss(temperature: float, row_weight: float = 0.0) -> Loss:
    """T² (1/M) Σ_m KL(member m ‖ the student's m-th prediction), averaged over rows, with both sides at temperature T.

    The mean over members uses their weights and, on each row, covers only those who answer it. For `row_weight`, see
    `_over_rows`.
    """

    def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
        teacher = batch.teacher.tempered(temperature)
        divergence = teacher.member_mean(teacher.kl(student.tempered(temperature)))
        return temperature**2 * _over_rows(divergence, batch, row_weight)

    return loss


def deviation_loss(temperature: float, deviation_weight: float, row_weight: float = 0.0) -> Loss:
    """T² KL(pooled members ‖ pooled heads) + a T² (1/M) Σ_m (the deviation error of head m), averaged over rows.

    The temperature is T throughout, and a is `deviation_weight`. A deviation error measures how differently head m
    deviates from the heads' mean than member m does from the members' mean; see `Predictive.deviation_error`. At a = 1
    the loss is `members_loss` to second order in the heads' error. It separates the error of the heads' pooled
    prediction from the error of their differences, so the latter can weigh more. On a row that some members do not
    answer, both terms cover only the heads of those who do.
    """

    def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
        teacher = batch.teacher.tempered(temperature)
        student = matched(student.tempered(temperature), teacher)
        pooled = teacher.pooled().kl(student.pooled())[:, 0]
        apart = teacher.member_mean(teacher.deviation_error(student))
        return temperature**2 * _over_rows(pooled + deviation_weight * apart, batch, row_weight)

    return loss


def with_labels(loss: Loss, weight: float) -> Loss:
    """The loss plus `weight` times −ln q(y) of the pooled prediction, averaged over the rows that have a label."""
    if weight == 0:
        return loss

    def both(batch: Batch, student: Predictive, step: Step) -> Tensor:
        return loss(batch, student, step) + weight * labels_loss(batch, student)

    return both


def _over_rows(losses: Tensor, batch: Batch, row_weight: float) -> Tensor:
    """The weighted mean of losses (B, …) over the rows of all ranks.

    A row's weight is its members' model uncertainty, relative to the batch's largest, to the power `row_weight`.
    """
    if row_weight == 0:
        return ranks.mean_of_all(losses)
    disagreement = batch.teacher.summary().model
    least = torch.finfo(disagreement.dtype)
    largest = ranks.largest_of_all(disagreement.amax()).clamp_min(least.tiny)
    weight = (disagreement / largest + least.eps) ** row_weight
    over = torch.sum if ranks.several() else torch.mean  # the mean keeps a single process's bits as they were
    return ranks.share_of_all(over(losses * weight), over(weight), least.tiny)


HINTON_SHARE = 0.3


class HydraOptions(Options):
    temperature: float = Field(
        1.0, ge=0.05, le=100, description="Softens teacher and student; the loss is scaled by its square."
    )
    hinton_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of training spent in the first phase; default 0.3, or 0 when starting from several members.",
    )
    loss: Literal["kl", "deviation"] = Field(
        "kl",
        description="kl: each head's divergence from its member; deviation: the pooled prediction's, plus the heads' "
        "deviations from it.",
    )
    deviation_weight: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description='Weight of the deviations beside the pooled prediction, with loss = "deviation"; default 1.',
    )
    row_weight: float = Field(
        0.0, ge=0, le=2, description="Weight rows by this power of the members' disagreement; 0 weights all alike."
    )
    label_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the labels' −ln q(y) under the pooled prediction, beside the members: better "
        "predictions, less faithful to the ensemble.",
    )
    closed_form: ClosedForm = None
    ridge: Shrinkage = SHRINKAGE


class Hydra(Method):
    """One body and one head per member, trained in two phases.

    First, one "Hinton head" learns the ensemble's pooled prediction. Then it is copied into one head per member, and
    body and heads train together, each head against its own member. The loss of the second phase is equation 3 of the
    paper, (1/M) Σ_m KL(p_m ‖ q_m), with both sides at temperature T. The paper states neither its T nor a factor T²;
    the factor keeps gradients comparable across T.

    Fidelity and quality are different aims. `label_weight` adds the labels to both phases, as in BAN+L: the student
    then answers better where the ensemble is wrong, and moves away from the ensemble.
    """

    title = "one body, one head per member; keeps the ensemble's diversity"
    paper = "Tran et al. 2020, arXiv:2001.04694"
    outputs = "one distribution per member"
    Options: ClassVar[type[BaseModel]] = HydraOptions

    def heads(self, members: int) -> int:
        return members

    def beyond_samples(self, options: BaseModel, pooled_top: bool) -> str | None:
        assert isinstance(options, HydraOptions)
        if options.loss != "kl":
            return f"method.loss is {options.loss!r}, which compares the logits of all classes"
        if options.row_weight:
            return f"method.row-weight is {options.row_weight:g}, and disagreement is told by entropies"
        return softened(options)

    def needed(self, options: BaseModel) -> frozenset[str]:
        assert isinstance(options, HydraOptions)
        return self.needs | ({"labels"} if options.label_weight else set())

    def settled(self, options: BaseModel, task: type[Task], from_members: bool) -> BaseModel:
        """The options, with their defaults filled in.

        A start from several members skips the first phase, which would train one head on their mean. Closed-form heads
        are the best start for classifiers. If a head emits a variance too, least squares misjudges it, so closed form
        is then the default only for a start from members, which needs it.

        Raises:
            EdistillError: `deviation_weight` is set, and the loss has no deviations.
        """
        assert isinstance(options, HydraOptions)
        if options.loss != "deviation" and options.deviation_weight is not None:
            raise EdistillError(
                f"method.deviation-weight is {options.deviation_weight:g}, and method.loss {options.loss!r} has none. "
                'Set method.loss to "deviation", or leave the weight out.'
            )
        default = {
            "deviation_weight": 1.0 if options.loss == "deviation" else None,
            "hinton_share": 0.0 if from_members else HINTON_SHARE,
        }
        unset = {key: value for key, value in default.items() if getattr(options, key) is None}
        return options.model_copy(update=unset | settled_form(options, from_members or task.solves))

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        return idle_ridge(options)

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        assert isinstance(options, HydraOptions)
        temperature = options.temperature
        share = HINTON_SHARE if options.hinton_share is None else options.hinton_share
        fit = solved_heads(options, members_say)
        pooled = with_labels(pooled_loss(temperature), options.label_weight)
        hinton = Stage("hinton", share, lambda student: student, pooled)
        if options.loss == "kl":
            loss = members_loss(temperature, options.row_weight)
        else:
            weight = 1.0 if options.deviation_weight is None else options.deviation_weight
            loss = deviation_loss(temperature, weight, options.row_weight)
        loss = with_labels(loss, options.label_weight)
        heads = Stage("heads", 1 - share, lambda student: student.with_heads(members), loss, fit)
        return (hinton, heads) if share else (heads,)


METHOD = Hydra
