"""Distributions over classes, held as logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ensemble_distill.predictive.protocol import Average, Summary


@dataclass(frozen=True)
class Categorical:
    """M categorical distributions for each row.

    Attributes:
        logits: (B, M, *L, K), natural-log scores, any offset.
        weights: (M,) not negative, taken relative to their sum; None for equal weights.
        average: what pooling means: the mixture ("probabilities") or the softmax of the mean logits
            ("logits"). Uncertainties are those of the mixture in either case.
    """

    logits: Tensor
    weights: Tensor | None = None
    average: Average = "probabilities"

    @property
    def members(self) -> int:
        return self.logits.shape[1]

    def tempered(self, temperature: float) -> Self:
        """softmax(logits / temperature); temperature > 0."""
        return replace(self, logits=self.logits / temperature)

    def log_probs(self) -> Tensor:
        """(B, M, *L, K)."""
        return self.logits.log_softmax(-1)

    def mixture_log_probs(self) -> Tensor:
        """ln of the mean probability, (B, *L, K), from logsumexp so that tiny probabilities survive."""
        return torch.logsumexp(self.log_probs() + self._over_members(self._weights().log()), dim=1)

    def pooled(self) -> Self:
        """One distribution for all members, M = 1."""
        if self.average == "logits":
            pooled = self.member_mean(self.log_probs()).log_softmax(-1)
        else:
            pooled = self.mixture_log_probs()
        return replace(self, logits=pooled.unsqueeze(1), weights=None)

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) in nats, (B, M, *L); an M of 1 on either side is spread over the other's."""
        p, q = self.log_probs(), student.log_probs()
        return (p.exp() * (p - q)).sum(-1)

    def nll(self, y: Tensor) -> Tensor:
        """−ln p(y), (B, M, *L), for classes y (B, *L)."""
        log_probs = self.log_probs()
        index = y.unsqueeze(1).unsqueeze(-1).expand(*log_probs.shape[:-1], 1)
        return -log_probs.gather(-1, index).squeeze(-1)

    def entropy(self) -> Tensor:
        """H[p_m] in nats, (B, M, *L)."""
        log_probs = self.log_probs()
        return -(log_probs.exp() * log_probs).sum(-1)

    def summary(self) -> Summary:
        """Pooled probabilities and the three uncertainties.

        Model uncertainty is the mutual information H[p̄] − mean H[p_m] (Tran et al. 2020, section 4),
        computed as mean KL(p_m ‖ p̄): equal, never negative, and exact where the two entropies nearly cancel.
        """
        log_probs = self.log_probs()
        mixture = torch.logsumexp(log_probs + self._over_members(self._weights().log()), dim=1)
        gap = log_probs - mixture.unsqueeze(1)
        model = self.member_mean((log_probs.exp() * gap).sum(-1)).clamp_min(0)
        data = self.member_mean(-(log_probs.exp() * log_probs).sum(-1))
        mean = self.pooled().log_probs().squeeze(1).exp()
        return Summary(mean=mean, total=data + model, data=data, model=model)

    def _weights(self) -> Tensor:
        if self.weights is not None:
            weights = self.weights.to(self.logits)
            return weights / weights.sum()  # a sum that is 1 only in float32 would bias model uncertainty in float64
        return self.logits.new_full((self.members,), 1.0 / self.members)

    def _over_members(self, values: Tensor) -> Tensor:
        """(M,) shaped to broadcast over (B, M, *L, K)."""
        return values.view(1, -1, *[1] * (self.logits.dim() - 2))

    def member_mean(self, values: Tensor) -> Tensor:
        """The members' weighted mean of values (B, M, ...), over dimension 1."""
        weights = self._weights()
        return (values * weights.view(1, -1, *[1] * (values.dim() - 2))).sum(1)
