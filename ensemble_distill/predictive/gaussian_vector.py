"""Independent normal distributions of several targets, held as means and log-variances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.gaussian import Gaussian, emitted_moments
from ensemble_distill.predictive.members import Members
from ensemble_distill.predictive.parts import Parts, mixed_nll
from ensemble_distill.predictive.pools import Mixtures, Pool
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.weighted import mixture_nll


@dataclass(frozen=True)
class GaussianVector(Members):
    """M vectors of D independent normal distributions for each row.

    Attributes:
        mean: (B, M, *L, D), in each target's unit.
        log_variance: (B, M, *L, D), natural logarithms of the variances in those units squared.
        unit: (D,), each target's standard deviation: the unit of uncertainties over all targets.
        weights: (M,), or (B, M) to weight each row differently; nonnegative, relative to their sum; None for equal.
    """

    mean: Tensor
    log_variance: Tensor
    unit: Tensor
    weights: Tensor | None = None

    @property
    def apart(self) -> Gaussian:
        """The targets as separate normal distributions, in place of positions."""
        return Gaussian(self.mean, self.log_variance, self.weights)

    def _of(self, apart: Gaussian) -> Self:
        return replace(self, mean=apart.mean, log_variance=apart.log_variance, weights=apart.weights)

    @property
    def members(self) -> int:
        return self.mean.shape[1]

    @property
    def pool(self) -> type[Pool]:
        return Mixtures

    def tempered(self, temperature: float) -> Self:
        """Every density to the power 1/temperature, normalized: the variances times the temperature."""
        return self._of(self.apart.tempered(temperature))

    def calibrated(self, by: Calibration) -> Self:
        """The members' means moved apart or together about their fixed mean, and every variance times one factor."""
        return self._of(self.apart.calibrated(by))

    def means(self) -> Tensor:
        """The members' means in units of `unit`, (B, M, *L, D), so that different targets can be compared."""
        return self.mean / self.unit.to(self.mean)

    def mixture(self) -> Self:
        """For each target, the normal distribution with the mixture's moments; see `Gaussian.mixture`."""
        return self._of(self.apart.mixture())

    def pooled(self) -> Self:
        """For each target, the normal distribution with the mixture's moments, M = 1."""
        return self.mixture()

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) in nats, summed over targets, (B, M, *L); M = 1 broadcasts on either side."""
        return self.apart.kl(student.apart).sum(-1)

    def deviation_error(self, student: Self) -> Tensor:
        """The sum over targets of `Gaussian.deviation_error`, in nats, (B, M, *L)."""
        return self.apart.deviation_error(student.apart).sum(-1)

    def nll(self, y: Tensor) -> Tensor:
        """−Σ_d ln N(y_d; μ_md, σ_md²), (B, M, *L), for targets y (B, *L, D)."""
        return self.apart.nll(y).sum(-1)

    def pooled_nll(self, y: Tensor) -> Tensor:
        """−ln of the density at y of the mixture of the members' joint distributions, (B, *L)."""
        return mixture_nll(self.weights, self.nll(y))

    def each(self) -> Summary:
        """Pooled mean and uncertainties of each target, (B, *L, D), in its own unit and that unit squared."""
        return self.apart.summary()

    def summary(self) -> Summary:
        """Pooled means (B, *L, D) in the targets' units, and the three uncertainties (B, *L).

        An uncertainty is the mean over targets of variances in squares of `unit`, since variances in different units
        cannot be added.
        """
        each = self.each()
        square = self.unit.to(each.data).square()
        data, model = ((variance / square).mean(-1) for variance in (each.data, each.model))
        return Summary(mean=each.mean, total=data + model, data=data, model=model)

    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        each = self.apart.parts(share, None)
        model = (each.model / self.unit.to(each.model).square()).mean(-1)
        return Parts(self._of(each.pooled), model, None if y is None else mixed_nll(share, self.nll(y)))

    def log_width(self) -> Tensor:
        """ln of the mean of the members' variances, averaged over targets, (B,)."""
        return self.each().data.log().mean(-1)

    def as_member(self) -> Tensor:
        """The mixture's means and log-variances, (B, 2D)."""
        pooled = self.pooled()
        return torch.cat([pooled.mean, pooled.log_variance], dim=-1).squeeze(1)

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """`mean` and `variance` (B, D) of the mixture and, if M > 1, `head_means` and `head_variances` (B, M, D)."""
        heads = {"head_means": self.mean, "head_variances": self.log_variance.exp()} if self.members > 1 else {}
        return {"mean": summary.mean, "variance": self.each().total, **heads}


@dataclass(frozen=True)
class GaussianVectorFamily:
    """A head emits D means and D log-variances, in units of `scale` about `center`.

    Attributes:
        unit: the D targets' standard deviations: the units of uncertainties over all targets.
        center, scale: D numbers each, in the targets' units, with scale > 0; empty for 0 and 1.
    """

    unit: tuple[float, ...] = (1.0,)
    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    stands_for_all: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Turns lists, as read from JSON, into tuples. Raises ValueError for fields that no training writes."""
        for name in ("unit", "center", "scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        count, lengths = len(self.unit), {len(self.center), len(self.scale)}
        positive = all(isinstance(x, float | int) and 0 < x < math.inf for x in (*self.unit, *self.scale))
        if count < 1 or not lengths <= {0, count} or len(lengths) > 1 or not positive:
            raise ValueError(f"{self} is not a family of {count} targets")

    def width(self, classes: int) -> int:
        return 2 * len(self.unit)

    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> GaussianVector:
        mean, log_variance = raw.chunk(2, dim=-1)
        if self.scale:
            center, scale = (raw.new_tensor(values) for values in (self.center, self.scale))
            mean, log_variance = center + scale * mean, log_variance + 2 * scale.log()
        return GaussianVector(mean, log_variance, raw.new_tensor(self.unit), weights)

    def from_emitted(self, outputs: Mapping[str, Tensor]) -> Tensor:
        mean, variance = emitted_moments(outputs)
        return torch.cat([mean, variance.log()], dim=-1)

    def raw(self, predictive: GaussianVector) -> Tensor:
        mean, log_variance = predictive.mean, predictive.log_variance
        if self.scale:
            center, scale = (mean.new_tensor(values) for values in (self.center, self.scale))
            mean, log_variance = (mean - center) / scale, log_variance - 2 * scale.log()
        return torch.cat([mean, log_variance], dim=-1)


FAMILY = GaussianVectorFamily
