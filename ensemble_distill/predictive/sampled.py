"""Distributions over classes, known at a few drawn ids with weights that make sums over classes unbiased.

They offer what a loss needs of a teacher, if it is a sum over classes weighted by p_m: `kl`, and `pooled`, the mixture.
Entropies, temperatures, the probability of a label and logits are unknown and raise EdistillError; training refuses
settings that would need them before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.members import Members
from ensemble_distill.predictive.parts import Parts
from ensemble_distill.predictive.pools import Mixtures, Pool
from ensemble_distill.predictive.protocol import Summary
from ensemble_distill.predictive.weighted import log_shares


@dataclass(frozen=True)
class Sampled(Members):
    """M distributions over K classes for each of B rows or positions, known at n ids that all members share.

    Attributes:
        ids: (B, 1, n), int64, all different.
        weight: (B, M, n), nonnegative: Σ_i weight_i f(id_i) has the expectation Σ_c p_m(c) f(c).
        log_p: (B, M, n), ln p_m(id); any number where the weight is 0.
        top: (B, M), the largest probability of each distribution.
        weights: (M,), the members' weights; None for equal weights.
    """

    ids: Tensor
    weight: Tensor
    log_p: Tensor
    top: Tensor
    weights: Tensor | None = None

    pool: ClassVar[type[Pool]] = Mixtures

    @classmethod
    def of(cls, raw: Tensor, weights: Tensor | None) -> Self:
        """Distributions from the records that `SampledRecords` reads, (B, M, 3n + 1)."""
        ids, weight, log_p = raw[..., :-1].chunk(3, -1)
        return cls(ids[:, :1].long(), weight, log_p, raw[..., -1], weights)

    @property
    def members(self) -> int:
        return self.weight.shape[1]

    def tempered(self, temperature: float) -> Self:
        """Self at temperature 1. Raises EdistillError at any other, since p^(1/T) is normalized over all classes."""
        if temperature != 1:
            _refuse(f"a temperature of {temperature:g}")
        return self

    def mixture(self) -> Self:
        """The mean probabilities, M = 1; `top` is exact if the likeliest class is among the ids, else too low."""
        if self.members == 1:
            return self
        of_some = torch.where(self.weight > 0, self.log_p + log_shares(self.weights, self.log_p), -torch.inf)
        log_p = torch.logsumexp(of_some, dim=1, keepdim=True)
        weight = self.member_mean(self.weight).unsqueeze(1)
        log_p = torch.where(weight > 0, log_p, 0.0)
        return replace(self, weight=weight, log_p=log_p, top=log_p.exp().amax(-1), weights=None)

    def pooled(self) -> Self:
        return self.mixture()

    def kl(self, student: Any) -> Tensor:
        """An unbiased estimate of KL(self ‖ student) in nats, (B, M); it may be negative, and is 0 for a perfect copy.

        Its gradient with respect to the student's logits is unbiased, too.
        """
        assert isinstance(student, Categorical)
        log_probs = student.log_probs()
        q = log_probs.gather(-1, self.ids.expand(-1, log_probs.shape[1], -1))
        return (self.weight * (self.log_p - q)).sum(-1)

    # --- unknown from samples -----------------------------------------------------------------------------------

    def calibrated(self, by: Any) -> NoReturn:
        _refuse("a calibrated prediction")

    def deviation_error(self, student: Any) -> NoReturn:
        _refuse("how members deviate")

    def nll(self, y: Tensor) -> NoReturn:
        _refuse("the probability of a label")

    def pooled_nll(self, y: Tensor) -> NoReturn:
        _refuse("the probability of a label")

    def means(self) -> NoReturn:
        _refuse("all probabilities")

    def summary(self) -> Summary:
        _refuse("an entropy")

    def log_width(self) -> None:
        return None

    def as_member(self) -> NoReturn:
        _refuse("all probabilities")

    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        _refuse("what some members predict")

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        _refuse("all probabilities")


def _refuse(what: str) -> NoReturn:
    raise EdistillError(
        f"The records hold a few drawn classes of each row, and {what} needs all of them. Set "
        'cache.records = "dense" and run edistill cache-logits --overwrite.'
    )
