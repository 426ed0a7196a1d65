"""Hydra (Tran et al. 2020, arXiv:2001.04694): one body, and one head that imitates each member."""

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
    """T² (1/M) Σ_m KL(member m ‖ the student's m-th prediction), the mean over rows, with temperature T on both
    sides; members of unequal weight count by theirs, and on each row those who answer it."""

    def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
        teacher = batch.teacher.tempered(temperature)
        divergence = teacher.member_mean(teacher.kl(student.tempered(temperature)))
        return temperature**2 * _over_rows(divergence, batch, row_weight)

    return loss


def deviation_loss(temperature: float, deviation_weight: float, row_weight: float = 0.0) -> Loss:
    """T² KL(pooled members ‖ pooled heads) + a T² (1/M) Σ_m (how otherwise head m departs from the pooled heads than
    member m from the pooled members), the mean over rows, with temperature T throughout and `deviation_weight` a.

    At a = 1 it is `members_loss` to second order in the heads' error; what the heads get wrong together and what they
    get wrong of their differences stand apart in it, so the second can weigh more. See `deviation_error`. On a row that
    some members do not answer, both are of the heads of those who do.
    """

    def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
        teacher = batch.teacher.tempered(temperature)
        student = matched(student.tempered(temperature), teacher)
        pooled = teacher.pooled().kl(student.pooled())[:, 0]
        apart = teacher.member_mean(teacher.deviation_error(student))
        return temperature**2 * _over_rows(pooled + deviation_weight * apart, batch, row_weight)

    return loss


def with_labels(loss: Loss, weight: float) -> Loss:
    """The loss + `weight` · −ln q(y) of the pooled prediction, the mean over the rows that have a label."""
    if weight == 0:
        return loss

    def both(batch: Batch, student: Predictive, step: Step) -> Tensor:
        return loss(batch, student, step) + weight * labels_loss(batch, student)

    return both


def _over_rows(losses: Tensor, batch: Batch, row_weight: float) -> Tensor:
    """The mean over the rows (B, …) of all ranks, each weighted by its members' model uncertainty to a power, in shares
    of the batch."""
    if row_weight == 0:
        return ranks.mean_of_all(losses)
    disagreement = batch.teacher.summary().model
    least = torch.finfo(disagreement.dtype)
    largest = ranks.largest_of_all(disagreement.amax()).clamp_min(least.tiny)
    weight = (disagreement / largest + least.eps) ** row_weight
    over = torch.sum if ranks.several() else torch.mean  # one process keeps the bits that it always had
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
    """Two phases: one "Hinton head" learns the ensemble's pooled prediction; then it is copied into a head per
    member, and body and heads go on together, each head against its own member.

    The loss of the second phase is equation 3 of the paper, (1/M) Σ_m KL(p_m ‖ q_m), with temperature T on both
    sides. The paper states neither its T nor a factor T²; the factor keeps gradients comparable across T.

    Fidelity and quality are different aims: `label_weight` adds the labels to both phases, as in BAN+L, and makes the
    student answer better where the ensemble is wrong, which moves it away from the ensemble.
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
        """What several members' weights bring needs no first phase, which would train one head on their mean.

        Heads in closed form are where classifiers start best. Where a head says a variance too, least squares misjudges
        that, so there it is but what a start from members needs.

        Raises:
            EdistillError: deviations get a weight, and the loss has no such term.
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
