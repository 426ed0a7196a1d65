"""BatchEnsemble (Wen et al. 2020, arXiv:2002.06715) as a student: shared weights, and rank-one factors per member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, Field

from ensemble_distill.methods.hydra import members_loss
from ensemble_distill.methods.kd import pooled_loss
from ensemble_distill.methods.method import Method, Options, Stage
from ensemble_distill.students.student import Form


class BatchEnsembleOptions(Options):
    temperature: float = Field(
        1.0, ge=0.05, le=100, description="Softens both sides of the loss, which is scaled by its square."
    )
    hinton_share: float = Field(0.3, ge=0, lt=1, description="Share of training that goes to the shared weights alone.")
    spread: float = Field(0.0, ge=0, le=1, description="Standard deviation of the factors about 1, where they start.")


class BatchEnsemble(Method):
    """Member m of the student has the weights W ∘ (r_m s_mᵀ) in every linear and convolutional layer, and imitates
    member m of the ensemble.

    Distilling one-to-one into such a student is from LatentBE (Nam et al. 2022, arXiv:2206.15047), which then averages
    the factors into one network; here they stay, since the members are the aim. As in its authors' code the factors
    start at 1: members part because their targets differ. (A random start hurt short trainings on digits, and was no
    better in long ones. On the quickstart's digits, two members' bodies, validation rows, two seeds, 6 epochs from a
    `spread` of 0, .2 and .3 gave 17 %, 43 % and 81 % of the members' model uncertainty, a divergence from the members
    of .031, .037 and .047, and a mean KL of .011, .011 and .015: where model uncertainty counts, .2 is worth a try.)

    Theirs is one stage, which a `hinton_share` of 0 gives; but to learn the pooled prediction
    first, as Hydra does, brought the members nearer to their targets, and is M times cheaper while it lasts.

    A factor's gradient is 1/M of a shared weight's, for which their code makes up; adaptive optimizers do so anyway.
    """

    title = "members that share their weights but for rank-one factors; keeps the ensemble's diversity"
    paper = "Wen et al. 2020, arXiv:2002.06715"
    outputs = "one distribution per member"
    form: ClassVar[Form] = "rank-one"
    Options: ClassVar[type[BaseModel]] = BatchEnsembleOptions

    def heads(self, members: int) -> int:
        return members

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        assert isinstance(options, BatchEnsembleOptions)
        temperature, share, spread = options.temperature, options.hinton_share, options.spread
        hinton = Stage("hinton", share, lambda student: student, pooled_loss(temperature))
        each = Stage(
            "members", 1 - share, lambda student: student.with_rank_one(members, spread), members_loss(temperature)
        )
        return (hinton, each) if share else (each,)


METHOD = BatchEnsemble
