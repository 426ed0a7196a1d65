"""Several numbers of one row, each by a normal distribution of its own."""

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
        log_variance: (B, M, *L, D), natural logarithms of variances in those units squared.
        unit: (D,) what uncertainties over all targets are measured in: each one's standard deviation.
        weights: (M,), or (B, M) of each row, not negative, taken relative to their sum; None for equal weights.
    """

    mean: Tensor
    log_variance: Tensor
    unit: Tensor
    weights: Tensor | None = None

    @property
    def apart(self) -> Gaussian:
        """Each target by itself, as a position."""
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
        """Every density to the power of 1/temperature, normalized: the variances times the temperature."""
        return self._of(self.apart.tempered(temperature))

    def calibrated(self, by: Calibration) -> Self:
        """The means moved apart or together about their mean, which stays; every variance by one factor."""
        return self._of(self.apart.calibrated(by))

    def means(self) -> Tensor:
        """(B, M, *L, D), in units of `unit`, so that those of different targets can be compared."""
        return self.mean / self.unit.to(self.mean)

    def mixture(self) -> Self:
        """For each target the normal distribution with the mixture's moments; see `Gaussian.mixture`."""
        return self._of(self.apart.mixture())

    def pooled(self) -> Self:
        """The mixture's moments as one vector, M = 1."""
        return self.mixture()

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) in nats, summed over targets, (B, M, *L); an M of 1 is spread over the other's."""
        return self.apart.kl(student.apart).sum(-1)

    def deviation_error(self, student: Self) -> Tensor:
        """How otherwise the student's members depart from what they say together, (B, M, *L), nats; a sum over
        targets of `Gaussian.deviation_error`."""
        return self.apart.deviation_error(student.apart).sum(-1)

    def nll(self, y: Tensor) -> Tensor:
        """−Σ_d ln N(y_d; μ_md, σ_md²), (B, M, *L), for targets y (B, *L, D)."""
        return self.apart.nll(y).sum(-1)

    def pooled_nll(self, y: Tensor) -> Tensor:
        """−ln of the density at y of the mixture of the members' vectors, (B, *L)."""
        return mixture_nll(self.weights, self.nll(y))

    def each(self) -> Summary:
        """Mean and variances of each target, (B, *L, D), in its own unit and that unit squared."""
        return self.apart.summary()

    def summary(self) -> Summary:
        """Means (B, *L, D) in their units; the uncertainties are means over targets of variances in the squares of
        `unit`, since those of different targets could not be added else."""
        each = self.each()
        square = self.unit.to(each.data).square()
        data, model = ((variance / square).mean(-1) for variance in (each.data, each.model))
        return Summary(mean=each.mean, total=data + model, data=data, model=model)

    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        each = self.apart.parts(share, None)
        model = (each.model / self.unit.to(each.model).square()).mean(-1)
        return Parts(self._of(each.pooled), model, None if y is None else mixed_nll(share, self.nll(y)))

    def log_width(self) -> Tensor:
        """ln of the mean of the members' variances, the mean over targets, (B,)."""
        return self.each().data.log().mean(-1)

    def as_member(self) -> Tensor:
        """Means and log-variances of the mixture, (B, 2D)."""
        pooled = self.pooled()
        return torch.cat([pooled.mean, pooled.log_variance], dim=-1).squeeze(1)

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """`mean` and `variance` (B, D) of the mixture; `head_means` and `head_variances` (B, M, D) of several."""
        heads = {"head_means": self.mean, "head_variances": self.log_variance.exp()} if self.members > 1 else {}
        return {"mean": summary.mean, "variance": self.each().total, **heads}


@dataclass(frozen=True)
class GaussianVectorFamily:
    """A head emits D means and D log-variances, in units of `scale` about `center`.

    Attributes:
        unit: D standard deviations of the targets; what uncertainties over all are measured in.
        center, scale: D of each, in the targets' units; scale > 0. Empty for 0 and 1.
    """

    unit: tuple[float, ...] = (1.0,)
    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    stands_for_all: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raises ValueError for what no training writes; lists, as JSON has them, become tuples."""
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
