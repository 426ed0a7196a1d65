"""Dirichlet distributions over class probabilities: one network's prediction and its uncertainty about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.parts import Parts
from ensemble_distill.predictive.pools import Mixtures, Pool
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.spreads import exact, row_spreads
from ensemble_distill.predictive.stable import log_plus
from ensemble_distill.predictive.weighted import weighted_mean


@dataclass(frozen=True)
class Dirichlet:
    """One Dirichlet distribution for each row, which stands for a whole ensemble, so M is 1.

    Attributes:
        log_concentration: (B, 1, *L, K), ln α.

    Raises:
        ValueError: M is not 1.
    """

    log_concentration: Tensor

    def __post_init__(self) -> None:
        if self.members != 1:
            raise ValueError(f"a Dirichlet distribution stands for a whole ensemble: M is 1, not {self.members}")

    @property
    def members(self) -> int:
        return self.log_concentration.shape[1]

    @property
    def weights(self) -> None:
        """None, since one distribution stands for all members."""

    @property
    def pool(self) -> type[Pool]:
        return Mixtures

    @property
    def has_model_uncertainty(self) -> bool:
        return True

    @property
    def concentration(self) -> Tensor:
        """α, (B, 1, *L, K)."""
        return self.log_concentration.exp()

    def tempered(self, temperature: float) -> Self:
        """α^(1/temperature): the expected probabilities soften as a softmax does, and every α moves toward 1."""
        return self if temperature == 1 else replace(self, log_concentration=self.log_concentration / temperature)

    def calibrated(self, by: Calibration) -> Self:
        """Expected probabilities softened by the temperature, and the precision α_0 divided by the spread squared.

        Members drawn from the distribution thereby move apart by about the factor of the spread.
        """
        log_total = self.log_concentration.logsumexp(-1, keepdim=True)
        spread = row_spreads(by, replace(self, log_concentration=exact(self.log_concentration)).summary, log_total)
        log_total = log_total - 2 * (spread.log() if isinstance(spread, Tensor) else math.log(spread))
        log_mean = (self.log_concentration / by.temperature).log_softmax(-1)
        return replace(self, log_concentration=log_mean + log_total)

    def means(self) -> Tensor:
        """Expected probabilities α_k/α_0, (B, 1, *L, K)."""
        return self.log_concentration.softmax(-1)

    def mixture(self) -> Categorical:
        """The expected probabilities; their logits are ln(α_k/α_0)."""
        return Categorical(self.log_concentration.log_softmax(-1))

    def pooled(self) -> Categorical:
        return self.mixture()

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) between the Dirichlet distributions, nats, (B, 1, *L).

        Computed in float64, since lnΓ(α_0) − Σ lnΓ(α_k) cancels: float32 is off by a fifth where every α is 8,000.
        """
        a, b = (dirichlet.log_concentration.double().exp() for dirichlet in (self, student))
        total_a, total_b = a.sum(-1), b.sum(-1)
        normalizers = torch.lgamma(total_a) - torch.lgamma(total_b) + (torch.lgamma(b) - torch.lgamma(a)).sum(-1)
        divergence = normalizers + ((a - b) * (torch.digamma(a) - torch.digamma(total_a).unsqueeze(-1))).sum(-1)
        return divergence.to(self.log_concentration)

    def log_density(self, log_probs: Tensor) -> Tensor:
        """ln Dir(p; α), (B, M, *L), at M probability vectors per row, given as ln p (B, M, *L, K); no p may be 0.

        Computed in float64 for the same reason as `kl`.
        """
        a = self.log_concentration.double().exp()
        normalizer = torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1)
        return (normalizer + ((a - 1) * log_probs).sum(-1)).to(self.log_concentration)

    def deviation_error(self, student: Self) -> Tensor:
        """Raises TypeError, since a single distribution has no members that could deviate from it."""
        raise TypeError("a Dirichlet has no members whose deviations could be compared")

    def nll(self, y: Tensor) -> Tensor:
        """−ln(α_y/α_0), (B, 1, *L), for classes y (B, *L)."""
        return self.mixture().nll(y)

    def pooled_nll(self, y: Tensor) -> Tensor:
        """−ln(α_y/α_0), (B, *L)."""
        return self.nll(y).squeeze(1)

    def member_mean(self, values: Tensor) -> Tensor:
        """Values (B, 1, ...) without their member dimension, (B, ...)."""
        return weighted_mean(None, values)

    def summary(self) -> Summary:
        """Expected probabilities and the uncertainties in closed form, nats.

        With p = α/α_0: total = −Σ p_k ln p_k; data = Σ p_k (ψ(α_0 + 1) − ψ(α_k + 1)), the expected entropy;
        model = their difference, the mutual information (Malinin & Gales 2018, arXiv:1802.10501, appendix C).
        """
        log_concentration = self.log_concentration.squeeze(1)
        mean = log_concentration.softmax(-1)
        # with g(α) = ψ(α + 1) − ln α, model = Σ p_k (g(α_k) − g(α_0)), which does not cancel
        log_a = log_concentration.double()
        log_total = log_a.logsumexp(-1, keepdim=True)
        p = (log_a - log_total).exp()
        model = (p * (digamma_gap(log_a) - digamma_gap(log_total))).sum(-1).clamp_min(0)
        total = -(p * (log_a - log_total)).sum(-1)
        model, data = (values.to(mean) for values in (model, (total - model).clamp_min(0)))
        return Summary(mean=mean, total=data + model, data=data, model=model)

    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        """The parts of the expected probabilities, which form a single member."""
        return self.mixture().parts(share, y)

    def log_width(self) -> None:
        """None, since a temperature widens the prediction."""

    def as_member(self) -> Tensor:
        """Logits of the expected probabilities, (B, K)."""
        return self.pooled().as_member()

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """`logits` (B, K), ln of the expected probabilities, and `concentration` (B, K)."""
        return {"logits": self.as_member(), "concentration": self.concentration.squeeze(1)}


LARGEST = 600.0  # ln α is clamped to it: exp overflows float64 soon after, and the gap is 0 long before


def digamma_gap(log_a: Tensor) -> Tensor:
    """ψ(α + 1) − ln α from ln α, both float64, in operations that ONNX has; it falls from ∞ to 0, finally as 1/(2α).

    Uses the recurrence up to y = α + 7 and the asymptotic series there (Abramowitz & Stegun 6.3.5 and 6.3.18). The
    error is within 1e-11 everywhere, and ψ and ln do not cancel where α is large.
    """
    log_a = log_a.clamp_max(LARGEST)
    a = log_a.exp()
    y = a + 7
    square = 1 / (y * y)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132))))
    steps = sum((1 / (a + step) for step in range(2, 7)), 1 / (a + 1))
    return log_plus(math.log(7) - log_a) - 1 / (2 * y) - series - steps  # the first is ln(y/α)


@dataclass(frozen=True)
class DirichletFamily:
    """A head emits one number z per class, and α = exp(z) + `offset`.

    Attributes:
        offset: 0 or more; 1 bounds every density (Ryabinin et al. 2021, arXiv:2105.06987).
    """

    offset: float = 0.0

    stands_for_all: ClassVar[bool] = True

    def width(self, classes: int) -> int:
        return classes

    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> Dirichlet:
        if self.offset == 0:
            return Dirichlet(raw)
        log_offset = math.log(self.offset)
        return Dirichlet(log_offset + log_plus(raw - log_offset))

    def from_emitted(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["concentration"].log().unsqueeze(1)

    def raw(self, predictive: Dirichlet) -> Tensor:
        """The numbers z. Raises ValueError if a concentration does not exceed the offset, since no z gives it."""
        log_concentration = predictive.log_concentration
        if self.offset == 0:
            return log_concentration
        if not (log_concentration > math.log(self.offset)).all():
            raise ValueError(f"a concentration of {log_concentration.min().exp():.4g} is not above {self.offset:.4g}")
        return log_concentration + torch.log1p(-self.offset * (-log_concentration).exp())


FAMILY = DirichletFamily
