"""Hydra (Tran et al. 2020, arXiv:2001.04694): one body, and one head that imitates each member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor

from ensemble_distill.methods.kd import pooled_loss
from ensemble_distill.methods.method import Batch, Loss, Method, Options, Stage, Step
from ensemble_distill.predictive.protocol import Predictive


def members_loss(temperature: float) -> Loss:
    """T² (1/M) Σ_m KL(member m ‖ the student's m-th prediction), the mean over rows, with temperature T on both
    sides; members of unequal weight count by theirs."""

    def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
        teacher = batch.teacher.tempered(temperature)
        divergence = teacher.member_mean(teacher.kl(student.tempered(temperature)))
        return temperature**2 * divergence.mean()

    return loss


class HydraOptions(Options):
    temperature: float = Field(1.0, gt=0, description="Softens both sides of the loss, which is scaled by its square.")
    hinton_share: float = Field(0.3, gt=0, lt=1, description="Share of training that goes to the first phase.")


class Hydra(Method):
    """Two phases: one "Hinton head" learns the ensemble's pooled prediction; then it is copied into a head per
    member, and body and heads go on together, each head against its own member.

    The loss of the second phase is equation 3 of the paper, (1/M) Σ_m KL(p_m ‖ q_m), with temperature T on both
    sides. The paper states neither its T nor a factor T²; the factor keeps gradients comparable across T.
    """

    title = "one body, one head per member; keeps the ensemble's diversity"
    paper = "Tran et al. 2020, arXiv:2001.04694"
    outputs = "one distribution per member"
    Options: ClassVar[type[BaseModel]] = HydraOptions

    def heads(self, members: int) -> int:
        return members

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        assert isinstance(options, HydraOptions)
        temperature, share = options.temperature, options.hinton_share
        return (
            Stage("hinton", share, lambda student: student, pooled_loss(temperature)),
            Stage("heads", 1 - share, lambda student: student.with_heads(members), members_loss(temperature)),
        )


METHOD = Hydra
