"""BatchEnsemble (Wen et al. 2020, arXiv:2002.06715) as a student: shared weights and rank-one factors per member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, Field

from ensemble_distill.methods.hydra import members_loss
from ensemble_distill.methods.kd import pooled_loss
from ensemble_distill.methods.method import Method, Options, Stage, softened
from ensemble_distill.students.student import Form


class BatchEnsembleOptions(Options):
    temperature: float = Field(
        1.0, ge=0.05, le=100, description="Softens teacher and student; the loss is scaled by its square."
    )
    hinton_share: float = Field(
        0.3, ge=0, lt=1, description="Share of training in which only the shared weights learn."
    )
    spread: float = Field(0.0, ge=0, le=1, description="Standard deviation of the initial factors around 1.")


class BatchEnsemble(Method):
    """Member m of the student has the weights W ∘ (r_m s_mᵀ) and imitates member m of the ensemble.

    This holds for every linear and convolutional layer. One-to-one distillation into shared weights with factors is
    from LatentBE (Nam et al. 2022, arXiv:2206.15047), which then averages the factors into one network; here they stay,
    since the members are the aim. As in its authors' code, the factors start at 1, and members part because their
    targets differ.

    Random initial factors raise model uncertainty and mostly cost some prediction quality, so the default `spread` is
    0, and .2 is worth a try where model uncertainty counts. Measured on the validation rows of the quickstart's digits:

    - 60 epochs of one fresh body, three seeds, `spread` 0, .1, .2 and .3: 51 %, 52 %, 58 % and 66 % of the members'
      model uncertainty, a worth in uncertainty of 4.7, 4.9, 4.9 and 4.8 of 8 members, a divergence from the members of
      .0123, .0119, .0115 and .0118, and a mean KL of .0028, .0029, .0029 and .0029.
    - 60 epochs of two members' bodies, `spread` 0 and .2: worth 5.4 and 5.5, mean KL .0015 and .0014.
    - 200 epochs of a fresh body at 1e-3, two seeds, `spread` 0 and .2: worth 4.5 and 4.9, mean KL .0020 and .0022.
    - 40 epochs of seven fresh convolutions, one seed, `spread` 0 and .2: worth 2.3 and 2.0, mean KL .0219 and .0234.
    - 6 epochs of two members' bodies: a `spread` of .2 raised the divergence from the members from .031 to .037.

    LatentBE trains in one stage, as a `hinton_share` of 0 does. Learning the pooled prediction first, as Hydra does,
    brought the members nearer to their targets, and that stage is M times cheaper.

    A factor's gradient is 1/M of a shared weight's. Their code compensates for that; adaptive optimizers do so anyway.
    """

    title = "members that share their weights but for rank-one factors; keeps the ensemble's diversity"
    paper = "Wen et al. 2020, arXiv:2002.06715"
    outputs = "one distribution per member"
    # factors belong to layers that see whole rows, not positions
    tasks: ClassVar[frozenset[str]] = Method.tasks - {"language-modelling"}
    form: ClassVar[Form] = "rank-one"
    Options: ClassVar[type[BaseModel]] = BatchEnsembleOptions

    def beyond_samples(self, options: BaseModel, pooled_top: bool) -> str | None:
        return softened(options)

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
