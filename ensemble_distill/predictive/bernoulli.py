"""Independent yes/no labels of a row, held as logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ensemble_distill.predictive.of_logits import OfLogits, OfLogitsFamily
from ensemble_distill.predictive.parts import Parts, mixed
from ensemble_distill.predictive.pools import Mixtures, Pool, Products
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.stable import TINY, log_plus, logsigmoid
from ensemble_distill.predictive.weighted import log_shares, over_members


@dataclass(frozen=True)
class Bernoulli(OfLogits):
    """M vectors of K independent Bernoulli distributions for each row.

    Attributes:
        logits: (B, M, *L, K), ln p − ln (1 − p) of each label.
        weights: (M,), or (B, M) to weight each row differently; nonnegative, relative to their sum; None for equal.
        average: how members are pooled: by each label's mean probability ("probabilities") or mean logit ("logits").
            Uncertainties are those of the mixture in either case.
    """

    @property
    def pool(self) -> type[Pool]:
        return LogitMeans if self.average == "logits" else LabelMixtures

    def means(self) -> Tensor:
        """The probability of yes for each label, (B, M, *L, K)."""
        return self.logits.sigmoid()

    def mixture(self) -> Self:
        """Each label's mean probability, M = 1; by logsumexp, so that tiny probabilities of yes and of no survive."""
        of = log_shares(self.weights, self.logits)
        yes, no = (torch.logsumexp(logsigmoid(z) + of, dim=1, keepdim=True) for z in (self.logits, -self.logits))
        return replace(self, logits=yes - no, weights=None)

    def pooled(self) -> Self:
        """One vector for all members, M = 1: the mixture, or the mean logits."""
        if self.average == "probabilities":
            return self.mixture()
        return replace(self, logits=self.member_mean(self.logits).unsqueeze(1), weights=None)

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) in nats, summed over labels, (B, M, *L); M = 1 broadcasts on either side."""
        p = self.means()
        yes = logsigmoid(self.logits) - logsigmoid(student.logits)
        no = logsigmoid(-self.logits) - logsigmoid(-student.logits)
        return (p * yes + (1 - p) * no).sum(-1)

    def deviation_error(self, student: Self) -> Tensor:
        """How much the members' deviations from their mean differ between self and student, in nats, (B, M, *L).

        ½ Σ_k w_k (1 − w_k) (d_mk − d'_mk)², where w is the mixture of self, and d and d' are the logits of self and
        student minus their means over members. For small differences this is KL(self ‖ student) between members whose
        pooled predictions are equal.
        """
        w = self.mixture().means()
        mine, theirs = (one.logits - one.member_mean(one.logits).unsqueeze(1) for one in (self, student))
        return 0.5 * (w * (1 - w) * (mine - theirs).square()).sum(-1)

    def nll(self, y: Tensor) -> Tensor:
        """−Σ_k ln p(y_k), (B, M, *L), for labels y (B, *L, K) of 0 and 1."""
        return (log_plus(self.logits) - y.unsqueeze(1) * self.logits).sum(-1)

    def pooled_nll(self, y: Tensor) -> Tensor:
        """−Σ_k ln p(y_k) under the pooled prediction, (B, *L)."""
        return self.pooled().nll(y).squeeze(1)

    def entropy(self) -> Tensor:
        """H[p_mk], the entropy of each label in nats, (B, M, *L, K)."""
        p = self.means()
        return -(p * logsigmoid(self.logits) + (1 - p) * logsigmoid(-self.logits))

    def each(self) -> Summary:
        """Pooled probability and uncertainties of each label, (B, *L, K).

        Model uncertainty is the mutual information. It is computed as mean KL(p_m ‖ p̄), which is equal to the
        difference of entropies, never negative, and exact where the two nearly cancel.
        """
        mixture, p = self.mixture().logits, self.means()
        gap = p * (logsigmoid(self.logits) - logsigmoid(mixture)) + (1 - p) * (
            logsigmoid(-self.logits) - logsigmoid(-mixture)
        )
        model = self.member_mean(gap).clamp_min(0)
        data = self.member_mean(self.entropy())
        return Summary(mean=self.pooled().means().squeeze(1), total=data + model, data=data, model=model)

    def summary(self) -> Summary:
        """Pooled probabilities (B, *L, K) and the three uncertainties (B, *L), summed over labels."""
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


class LabelMixtures(Mixtures):
    """Pooling by each label's mean probability, Σ w_m p_mk ÷ Σ w_m; W = K, one number per right label."""

    @staticmethod
    def parts(members: Bernoulli, y: Tensor, share: Tensor) -> Tensor:
        """ln (w_m p_mk(y_k)), (B, M, K)."""
        right = torch.where(y.unsqueeze(1) == 1, members.logits, -members.logits)
        return logsigmoid(right) + over_members(share.log(), right)

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """See `Pool.nll`; joined is (C, N, K)."""
        return (share.log()[:, None, None] - joined).sum(-1).mean(1)


class LogitMeans(Products):
    """Pooling by each label's mean logit; W = K."""

    @staticmethod
    def parts(members: Bernoulli, y: Tensor, share: Tensor) -> Tensor:
        """w_m z_mk, (B, M, K)."""
        return members.logits * over_members(share, members.logits)

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """See `Pool.nll`; joined is (C, N, K)."""
        logits = joined / share.to(joined)[:, None, None]
        return (log_plus(logits) - y * logits).sum(-1).mean(1)


class BernoulliFamily(OfLogitsFamily):
    """A head emits K logits, one per label."""

    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> Bernoulli:
        return Bernoulli(raw, weights, average)

    def raw(self, predictive: Bernoulli) -> Tensor:
        return predictive.logits


FAMILY = BernoulliFamily
