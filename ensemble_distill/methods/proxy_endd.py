"""EnD² by proxy (Ryabinin et al. 2021, arXiv:2105.06987): the student learns a Dirichlet made from the members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ensemble_distill.methods.method import Batch, Method, Options, Stage, Step
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet, DirichletFamily
from ensemble_distill.predictive.protocol import Family, Predictive

Divisor = Literal["b0", "b0+K"]


class ProxyEnDDOptions(Options):
    divisor: Divisor = Field("b0", description="What the entropy is divided by; the authors' code uses b0+K.")
    max_precision: float = Field(1e6, ge=1e-3, le=1e12, description="Upper bound on the precision where members agree.")


def members_precision(teacher: Categorical, largest: float) -> Tensor:
    """b0 = (K − 1) / (2 mean_m KL(p̄ ‖ p_m)), (B, *L), at most `largest`.

    By Stirling's approximation, it is the precision of a Dirichlet from which the members could have been drawn.
    """
    spread = (teacher.logits.shape[-1] - 1) / 2
    divergence = teacher.member_mean(teacher.mixture().kl(teacher))
    return spread / divergence.clamp_min(spread / largest)


class ProxyEnDD(Method):
    """One head that emits a Dirichlet, α = exp(z) + 1, trained by the reverse divergence to a proxy Dirichlet.

    The proxy is β = p̄ b0 + 1, where p̄ is the mean of the members' probabilities and b0 says how far they agree.

    The paper's loss is −Σ_k p̄_k (ψ(α_k) − ψ(α_0)) − H[Dir(α)] / b0, which is KL(Dir(α) ‖ Dir(β)) / b0 plus a term that
    does not depend on α. The loss here is that divergence without the term, so its optimum, α = β, is 0. The authors'
    code divides the entropy by b0 + K instead, which is the same loss for a proxy of precision b0 + K. Its optimum is
    α = p̄ (b0 + K) + 1, whose α_0 is larger by K, and so more certain than the members where they disagree.

    b0 is infinite where members agree. At the default bound, a Dirichlet's model uncertainty is (K − 1) / 2e6 nats,
    which is negligible, and z stays below 14. Members are read in float64, since b0 divides by their small differences.
    """

    title = "one head that gives a Dirichlet, learned from a proxy; for many classes too"
    paper = "Ryabinin et al. 2021, arXiv:2105.06987"
    outputs = "a Dirichlet"
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    several: ClassVar[bool] = True
    Options: ClassVar[type[BaseModel]] = ProxyEnDDOptions

    def family(self, of_members: Family) -> Family:
        return DirichletFamily(offset=1.0)

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        assert isinstance(options, ProxyEnDDOptions)

        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            assert isinstance(batch.teacher, Categorical)
            assert isinstance(student, Dirichlet)
            teacher = replace(batch.teacher, logits=batch.teacher.logits.double())
            precision = members_precision(teacher, options.max_precision).unsqueeze(1)
            if options.divisor == "b0+K":
                precision = precision + teacher.logits.shape[-1]
            proxy = Dirichlet(torch.log1p(teacher.mixture().means() * precision.unsqueeze(-1)))
            return (student.kl(proxy) / precision).mean()

        return (Stage("proxy", 1.0, lambda student: student, loss),)


METHOD = ProxyEnDD
