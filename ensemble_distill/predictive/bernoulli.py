"""Independent yes/no answers, held as logits: several labels of one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.categorical import TINY
from ensemble_distill.predictive.dirichlet import log_plus
from ensemble_distill.predictive.parts import Parts, mixed
from ensemble_distill.predictive.pools import Pool
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.spreads import exact, moves, row_spreads
from ensemble_distill.predictive.weighted import over_members, shares, weighted_mean

ANCHORED = 3  # times the pooled prediction is brought back, as for `Categorical`


def logsigmoid(z: Tensor) -> Tensor:
    """ln σ(z). Exported, torch's own becomes the logarithm of a sigmoid that onnxruntime takes for 0 early."""
    return -log_plus(-z)


@dataclass(frozen=True)
class Bernoulli:
    """M vectors of K independent Bernoulli distributions for each row.

    Attributes:
        logits: (B, M, *L, K), ln p − ln (1 − p) of each label.
        weights: (M,), or (B, M) of each row, not negative, taken relative to their sum; None for equal weights.
        average: what pooling means: the mean probability of each label ("probabilities") or its mean logit ("logits").
            Uncertainties are those of the mixture in either case.
    """

    logits: Tensor
    weights: Tensor | None = None
    average: Average = "probabilities"

    @property
    def members(self) -> int:
        return self.logits.shape[1]

    @property
    def pool(self) -> type[Pool]:
        return LogitMeans if self.average == "logits" else LabelMixtures

    @property
    def has_model_uncertainty(self) -> bool:
        return self.members > 1

    def tempered(self, temperature: float) -> Self:
        """sigmoid(logits / temperature); temperature > 0."""
        return self if temperature == 1 else replace(self, logits=self.logits / temperature)

    def calibrated(self, by: Calibration) -> Self:
        """Softened by the temperature; then the members' logits moved apart or together about their mean, by the
        spread, while what they predict together is brought back to what it was; see `Categorical.calibrated`."""
        soft = self.tempered(by.temperature)
        if self.members == 1 or not moves(by):
            return soft
        center = self.member_mean(soft.logits).unsqueeze(1)
        spreads = row_spreads(by, replace(soft, logits=exact(soft.logits)).summary, soft.logits)
        moved = replace(soft, logits=center + spreads * (soft.logits - center))
        if self.average == "logits":
            return moved
        anchor = soft.mixture().logits
        for _ in range(ANCHORED):
            moved = replace(moved, logits=moved.logits + anchor - moved.mixture().logits)
        return moved

    def means(self) -> Tensor:
        """Probabilities of yes, (B, M, *L, K)."""
        return self.logits.sigmoid()

    def mixture(self) -> Self:
        """Each label's mean probability, from logsumexp so that tiny ones survive on either side."""
        log_shares = over_members(shares(self.weights, self.logits).log(), self.logits)
        yes, no = (
            torch.logsumexp(logsigmoid(z) + log_shares, dim=1, keepdim=True) for z in (self.logits, -self.logits)
        )
        return replace(self, logits=yes - no, weights=None)

    def pooled(self) -> Self:
        """One vector for all members, M = 1: the mixture, or the mean logits."""
        if self.average == "probabilities":
            return self.mixture()
        return replace(self, logits=self.member_mean(self.logits).unsqueeze(1), weights=None)

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) in nats, summed over labels, (B, M, *L); an M of 1 is spread over the other's."""
        p = self.means()
        yes = logsigmoid(self.logits) - logsigmoid(student.logits)
        no = logsigmoid(-self.logits) - logsigmoid(-student.logits)
        return (p * yes + (1 - p) * no).sum(-1)

    def deviation_error(self, student: Self) -> Tensor:
        """How otherwise the student's members depart from what they say together, (B, M, *L), nats.

        ½ Σ_k w_k (1 − w_k) (d_mk − d'_mk)², with w the mixture of self, and d the logits less their members' mean: for
        small differences it is KL(self ‖ student) of members whose pooled predictions are equal.
        """
        w = self.mixture().means()
        mine, theirs = (one.logits - one.member_mean(one.logits).unsqueeze(1) for one in (self, student))
        return 0.5 * (w * (1 - w) * (mine - theirs).square()).sum(-1)

    def nll(self, y: Tensor) -> Tensor:
        """−Σ_k ln p(y_k), (B, M, *L), for labels y (B, *L, K) of 0 and 1."""
        return (log_plus(self.logits) - y.unsqueeze(1) * self.logits).sum(-1)

    def pooled_nll(self, y: Tensor) -> Tensor:
        """−Σ_k ln of the pooled probability of y_k, (B, *L)."""
        return self.pooled().nll(y).squeeze(1)

    def member_mean(self, values: Tensor) -> Tensor:
        """The members' weighted mean of values (B, M, ...), over dimension 1."""
        return weighted_mean(self.weights, values)

    def entropy(self) -> Tensor:
        """H[p_mk] of each label in nats, (B, M, *L, K)."""
        p = self.means()
        return -(p * logsigmoid(self.logits) + (1 - p) * logsigmoid(-self.logits))

    def each(self) -> Summary:
        """Probabilities and uncertainties of each label, (B, *L, K).

        Model uncertainty is the mutual information, computed as mean KL(p_m ‖ p̄): equal, never negative, and exact
        where two entropies nearly cancel.
        """
        mixture, p = self.mixture().logits, self.means()
        gap = p * (logsigmoid(self.logits) - logsigmoid(mixture)) + (1 - p) * (
            logsigmoid(-self.logits) - logsigmoid(-mixture)
        )
        model = self.member_mean(gap).clamp_min(0)
        data = self.member_mean(self.entropy())
        return Summary(mean=self.pooled().means().squeeze(1), total=data + model, data=data, model=model)

    def summary(self) -> Summary:
        """Pooled probabilities (B, *L, K), and the three uncertainties, each the sum over labels."""
        each = self.each()
        model, data = each.model.sum(-1), each.data.sum(-1)
        return Summary(mean=each.mean, total=data + model, data=data, model=model)

    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        yes, no = (mixed(share, logsigmoid(z).exp()) for z in (self.logits, -self.logits))
        entropy = torch.special.entr(yes) + torch.special.entr(no)
        model = (entropy - mixed(share, self.entropy())).clamp_min(0).sum(-1)
        mixture = yes.clamp_min(TINY).log() - no.clamp_min(TINY).log()
        logits = mixed(share, self.logits) if self.average == "logits" else mixture
        pooled = replace(self, logits=logits, weights=None)
        return Parts(pooled, model, None if y is None else pooled.nll(y))

    def log_width(self) -> None:
        """A temperature widens it."""

    def as_member(self) -> Tensor:
        """Logits of the pooled prediction, (B, K)."""
        return self.pooled().logits.squeeze(1)

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """`logits` (B, K) of the pooled probabilities, and `head_logits` (B, M, K) of several members."""
        heads = {"head_logits": self.logits} if self.members > 1 else {}
        return {"logits": self.as_member(), **heads}


class LabelMixtures:
    """Members whose probabilities of each label pool as Σ w_m p_mk ÷ Σ w_m: what they say of the right ones."""

    NOBODY = -torch.inf

    @staticmethod
    def parts(members: Bernoulli, y: Tensor, share: Tensor) -> Tensor:
        """ln w_m p_mk(y_k), (B, M, K)."""
        right = torch.where(y.unsqueeze(1) == 1, members.logits, -members.logits)
        return logsigmoid(right) + over_members(share.log(), right)

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        return torch.logaddexp(a, b)

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """(C,), from what was joined (C, N, K) and the sum of its shares (C,)."""
        return (share.log()[:, None, None] - joined).sum(-1).mean(1)


class LogitMeans:
    """Members whose logits are averaged: W = K."""

    NOBODY = 0.0

    @staticmethod
    def parts(members: Bernoulli, y: Tensor, share: Tensor) -> Tensor:
        """w_m z_mk, (B, M, K)."""
        return members.logits * over_members(share, members.logits)

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """(C,), from what was joined (C, N, K) and the sum of its shares (C,)."""
        logits = joined / share.to(joined)[:, None, None]
        return (log_plus(logits) - y * logits).sum(-1).mean(1)


@dataclass(frozen=True)
class BernoulliFamily:
    """A head emits K logits, one a label."""

    stands_for_all: ClassVar[bool] = False

    def width(self, classes: int) -> int:
        return classes

    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> Bernoulli:
        return Bernoulli(raw, weights, average)

    def from_emitted(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["head_logits"] if "head_logits" in outputs else outputs["logits"].unsqueeze(1)

    def raw(self, predictive: Bernoulli) -> Tensor:
        return predictive.logits


FAMILY = BernoulliFamily
