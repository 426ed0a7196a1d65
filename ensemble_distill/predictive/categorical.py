"""Distributions over classes, held as logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Self, TypeVar

import torch
from torch import Tensor

from ensemble_distill.predictive.of_logits import OfLogits, OfLogitsFamily
from ensemble_distill.predictive.parts import Parts, mixed
from ensemble_distill.predictive.pools import Mixtures, Pool, Products
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.stable import TINY
from ensemble_distill.predictive.weighted import log_shares

Made = TypeVar("Made")


def _once(make: Callable[[Categorical], Made]) -> Callable[[Categorical], Made]:
    """Caches a result that every figure and every term of a loss needs, for as long as the distribution lives.

    The result is computed again in two cases: if a gradient flows through the logits, since a result cached without
    one carries none; and if a user's loss has changed the logits or the result in place. Inference tensors count no
    such changes, so nothing is cached for them.
    """
    name = f"_{make.__name__}"

    @wraps(make)
    def kept(self: Categorical) -> Made:
        if self.logits.requires_grad or self.logits.is_inference():
            return make(self)
        made, versions = self.__dict__.get(name, (None, None))
        if made is None or versions != _versions(self, made):
            made = make(self)
            self.__dict__[name] = made, _versions(self, made)
        found: Made = made
        return found

    return kept


def _versions(*each: object) -> list[int]:
    """How often each tensor was changed in place, over the given tensors and the tensors among objects' attributes."""
    tensors = [of for one in each for of in ([one] if isinstance(one, Tensor) else vars(one).values())]
    return [of._version for of in tensors if isinstance(of, Tensor)]


@dataclass(frozen=True)
class Categorical(OfLogits):
    """M categorical distributions for each row.

    Attributes:
        logits: (B, M, *L, K), natural-log scores with any offset.
        weights: (M,), or (B, M) to weight each row differently; nonnegative, relative to their sum; None for equal.
        average: how members are pooled: as their mixture ("probabilities") or as the softmax of their mean logits
            ("logits"). Uncertainties are those of the mixture in either case.
    """

    @property
    def pool(self) -> type[Pool]:
        return Products if self.average == "logits" else Mixtures

    @_once
    def log_probs(self) -> Tensor:
        """Log-probabilities, (B, M, *L, K)."""
        return self.logits.log_softmax(-1)

    def scores(self) -> Tensor:
        return self.log_probs()

    def means(self) -> Tensor:
        """Probabilities, (B, M, *L, K)."""
        return self.log_probs().exp()

    @_once
    def mixture(self) -> Categorical:
        """The mean probabilities as one distribution, M = 1; by logsumexp, so that tiny probabilities survive."""
        log_probs = self.log_probs()
        if self.members == 1 and self.weights is None:  # the same bits as below, much faster
            return replace(self, logits=log_probs, weights=None)
        mixed = torch.logsumexp(log_probs + log_shares(self.weights, log_probs), dim=1, keepdim=True)
        return replace(self, logits=mixed, weights=None)

    def pooled(self) -> Categorical:
        """One distribution for all members, M = 1: the mixture, or the softmax of the mean logits."""
        if self.average == "probabilities":
            return self.mixture()
        pooled = self.member_mean(self.log_probs()).log_softmax(-1)
        return replace(self, logits=pooled.unsqueeze(1), weights=None)

    def kl(self, student: Self) -> Tensor:
        """KL(self ‖ student) in nats, (B, M, *L); M = 1 broadcasts on either side."""
        p, q = self.log_probs(), student.log_probs()
        return (p.exp() * (p - q)).sum(-1)

    def deviation_error(self, student: Self) -> Tensor:
        """How much the members' deviations from their mean differ between self and student, in nats, (B, M, *L).

        ½ Σ_k w_k (d_mk − d'_mk)², where w is the mixture of self. To get d_m, the logits are centered twice: on their
        w-weighted mean over classes, then on the mean over members; d'_m is the same for the student. For small
        differences this is KL(self ‖ student) between members whose pooled predictions are equal.
        """
        w = self.mixture().log_probs().exp()
        apart = self._deviations(w) - student._deviations(w)
        return 0.5 * (w * apart.square()).sum(-1)

    def _deviations(self, w: Tensor) -> Tensor:
        centered = self.logits - (w * self.logits).sum(-1, keepdim=True)
        return centered - self.member_mean(centered).unsqueeze(1)

    def nll(self, y: Tensor) -> Tensor:
        """−ln p(y), (B, M, *L), for classes y (B, *L)."""
        log_probs = self.log_probs()
        index = y.unsqueeze(1).unsqueeze(-1).expand(*log_probs.shape[:-1], 1)
        return -log_probs.gather(-1, index).squeeze(-1)

    def pooled_nll(self, y: Tensor) -> Tensor:
        """−ln p(y) under the pooled prediction, (B, *L)."""
        return self.pooled().nll(y).squeeze(1)

    def entropy(self) -> Tensor:
        """H[p_m], the entropy of each member in nats, (B, M, *L)."""
        log_probs = self.log_probs()
        return -(log_probs.exp() * log_probs).sum(-1)

    @_once
    def summary(self) -> Summary:
        """Pooled probabilities and the three uncertainties.

        Model uncertainty is the mutual information H[p̄] − mean H[p_m] (Tran et al. 2020, section 4). It is computed as
        mean KL(p_m ‖ p̄), which is equal, never negative, and exact where the two entropies nearly cancel.
        """
        log_probs = self.log_probs()
        gap = log_probs - self.mixture().logits
        model = self.member_mean((log_probs.exp() * gap).sum(-1)).clamp_min(0)
        data = self.member_mean(-(log_probs.exp() * log_probs).sum(-1))
        mean = self.pooled().log_probs().squeeze(1).exp()
        return Summary(mean=mean, total=data + model, data=data, model=model)

    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        log_probs = self.log_probs()
        mixture = mixed(share, log_probs.exp())
        model = torch.special.entr(mixture).sum(-1) - mixed(share, self.entropy())
        logits = mixed(share, log_probs) if self.average == "logits" else mixture.clamp_min(TINY).log()
        pooled = replace(self, logits=logits, weights=None)
        return Parts(pooled, model.clamp_min(0), None if y is None else pooled.nll(y))


class CategoricalFamily(OfLogitsFamily):
    """A head emits K logits."""

    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> Categorical:
        return Categorical(raw, weights, average)

    def raw(self, predictive: Categorical) -> Tensor:
        return predictive.logits - predictive.logits.mean(-1, keepdim=True)


FAMILY = CategoricalFamily
