"""Normal distributions of one target, held as means and log-variances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.members import Members
from ensemble_distill.predictive.parts import Parts, mixed, mixed_nll
from ensemble_distill.predictive.pools import Mixtures, Pool
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.spreads import exact, moves, row_spreads
from ensemble_distill.predictive.weighted import mixture_nll


@dataclass(frozen=True)
class Gaussian(Members):
    """M normal distributions for each row.

    Attributes:
        mean: (B, M, *L), in the target's unit.
        log_variance: (B, M, *L), natural logarithm of the variance in the target's unit squared.
        weights: (M,), or (B, M) to weight each row differently; nonnegative, relative to their sum; None for equal.
    """

    mean: Tensor
    log_variance: Tensor
    weights: Tensor | None = None

    @property
    def members(self) -> int:
        return self.mean.shape[1]

    @property
    def pool(self) -> type[Pool]:
        return Mixtures

    def tempered(self, temperature: float) -> Self:
        """The density to the power 1/temperature, normalized: the variance times the temperature."""
        return self if temperature == 1 else replace(self, log_variance=self.log_variance + math.log(temperature))

    def calibrated(self, by: Calibration) -> Self:
        """The members' means moved apart or together about their fixed mean, and every variance times one factor."""
        wider = replace(self, log_variance=self.log_variance + math.log(by.variance))
        if not moves(by):
            return wider
        center = self.member_mean(self.mean).unsqueeze(1)
        precise = replace(self, mean=exact(self.mean), log_variance=exact(self.log_variance))
        return replace(wider, mean=center + row_spreads(by, precise.summary, self.mean) * (self.mean - center))

    def means(self) -> Tensor:
        """The members' means, (B, M, *L, 1)."""
        return self.mean.unsqueeze(-1)

    def mixture(self) -> Self:
        """The normal distribution with the mixture's moments: μ = mean μ_m, σ² = mean σ_m² + Var μ_m.

        It is the normal distribution nearest to the mixture: for any normal q,
        mean_m KL(p_m ‖ q) = KL(moments ‖ q) + mean_m KL(p_m ‖ moments).
        """
        summary = self.summary()
        return replace(
            self, mean=summary.mean.unsqueeze(1), log_variance=summary.total.log().unsqueeze(1), weights=None
        )

    def pooled(self) -> Self:
        """The normal distribution with the mixture's moments, M = 1."""
        return self.mixture()

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) in nats, (B, M, *L); M = 1 broadcasts on either side.

        ln(σ_s/σ_t) + (σ_t² + (μ_t − μ_s)²) / (2σ_s²) − ½ (Tran et al. 2020, section 3).
        """
        ratio = self.log_variance - student.log_variance
        distance = (self.mean - student.mean).square() * (-student.log_variance).exp()
        return 0.5 * (ratio.expm1() - ratio + distance)  # expm1: exp(x) − 1 loses all digits where variances agree

    def deviation_error(self, student: Self) -> Tensor:
        """How much the members' deviations from their mean differ between self and student, in nats, (B, M, *L).

        ½ (d_m − d'_m)² / σ² + ¼ (v_m − v'_m)², where d and v are the means and log-variances minus their means over
        members, d' and v' are the student's, and σ² is the mean variance of self. To second order this is
        KL(self ‖ student) between members whose means over members are equal.
        """
        variance = self.member_mean(self.log_variance.exp()).unsqueeze(1)
        means, spreads = (
            (a - self.member_mean(a).unsqueeze(1)) - (b - student.member_mean(b).unsqueeze(1))
            for a, b in ((self.mean, student.mean), (self.log_variance, student.log_variance))
        )
        return 0.5 * means.square() / variance + 0.25 * spreads.square()

    def nll(self, y: Tensor) -> Tensor:
        """−ln N(y; μ_m, σ_m²), (B, M, *L), for targets y (B, *L)."""
        distance = (y.unsqueeze(1) - self.mean).square() * (-self.log_variance).exp()
        return 0.5 * (math.log(2 * math.pi) + self.log_variance + distance)

    def pooled_nll(self, y: Tensor) -> Tensor:
        """−ln of the mixture's density at y, (B, *L), not of the normal distribution with its moments."""
        return mixture_nll(self.weights, self.nll(y))

    def summary(self) -> Summary:
        """The mixture's mean and variance; data is the mean of the variances, model the variance of the means.

        The variance of the means divides by M, not M − 1, as the mixture's does (Tran et al. 2020, section 4).
        """
        rough = self.member_mean(self.mean)
        apart = self.mean - rough.unsqueeze(1)
        rounding = self.member_mean(apart)  # not 0 in float32, whose steps near 454 are 3e-5: members may be closer
        data = self.member_mean(self.log_variance.exp())
        model = self.member_mean((apart - rounding.unsqueeze(1)).square())
        return Summary(mean=rough + rounding, total=data + model, data=data, model=model)

    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        center = self.member_mean(self.mean).unsqueeze(1)
        apart = self.mean - center
        mean, data = mixed(share, apart), mixed(share, self.log_variance.exp())
        model = (mixed(share, apart.square()) - mean.square()).clamp_min(0)
        pooled = replace(self, mean=center + mean, log_variance=(data + model).log(), weights=None)
        return Parts(pooled, model, None if y is None else mixed_nll(share, self.nll(y)))

    def log_width(self) -> Tensor:
        """ln of the mean of the members' variances, (B,)."""
        return self.summary().data.log()

    def as_member(self) -> Tensor:
        """The mixture's mean and log-variance, (B, 2)."""
        pooled = self.pooled()
        return torch.cat([pooled.mean, pooled.log_variance], dim=1)

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """`mean` and `variance` (B,) of the mixture and, if M > 1, `head_means` and `head_variances` (B, M)."""
        heads = {"head_means": self.mean, "head_variances": self.log_variance.exp()} if self.members > 1 else {}
        return {"mean": summary.mean, "variance": summary.total, **heads}


@dataclass(frozen=True)
class GaussianFamily:
    """A head emits a mean and a log-variance, both in units of `scale` about `center`.

    Normal distributions pool only as their mixture, so `average` changes nothing.

    Attributes:
        center, scale: in the target's unit, with scale > 0; 0 and 1 if a head emits numbers in that unit.
    """

    center: float = 0.0
    scale: float = 1.0

    stands_for_all: ClassVar[bool] = False

    def width(self, classes: int) -> int:
        return 2

    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> Gaussian:
        mean, log_variance = raw.unbind(-1)
        return Gaussian(self.center + self.scale * mean, log_variance + 2 * math.log(self.scale), weights)

    def from_emitted(self, outputs: Mapping[str, Tensor]) -> Tensor:
        mean, variance = emitted_moments(outputs)
        return torch.stack([mean, variance.log()], dim=-1)

    def raw(self, predictive: Gaussian) -> Tensor:
        mean = (predictive.mean - self.center) / self.scale
        return torch.stack([mean, predictive.log_variance - 2 * math.log(self.scale)], dim=-1)


def emitted_moments(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Means and variances of each head, (B, M, …), from a student's named outputs; M = 1 if it has a single head."""
    if "head_means" in outputs:
        return outputs["head_means"], outputs["head_variances"]
    return outputs["mean"].unsqueeze(1), outputs["variance"].unsqueeze(1)


FAMILY = GaussianFamily
