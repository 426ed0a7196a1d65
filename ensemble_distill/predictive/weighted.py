"""How values of several members become one, by their weights.

Weights are (M,), or (B, M) where some members do not answer some rows: there theirs are 0. See `answered`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shares(weights: Tensor | None, like: Tensor) -> Tensor:
    """(M,) or (B, M) weights that sum to 1, in the dtype of `like` (B, M, ...); equal ones for None. Of a row that
    nobody answers they are NaN."""
    if weights is None:
        return like.new_full((like.shape[1],), 1.0 / like.shape[1])
    weights = weights.to(like)
    # a sum that is 1 only in float32 would bias model uncertainty in float64
    return weights / weights.sum(-1, keepdim=True)


def over_members(weights: Tensor, values: Tensor) -> Tensor:
    """(M,) or (B, M), shaped to broadcast over values (B, M, ...)."""
    rows = 1 if weights.dim() == 1 else len(weights)
    return weights.view(rows, -1, *[1] * (values.dim() - 2))


def weighted_mean(weights: Tensor | None, values: Tensor) -> Tensor:
    """The weighted mean of values (B, M, ...) over dimension 1."""
    return (values * over_members(shares(weights, values), values)).sum(1)


def mixture_nll(weights: Tensor | None, nll: Tensor) -> Tensor:
    """−ln Σ_m w_m exp(−nll_m), (B, ...), from each member's −ln p_m(y), (B, M, ...)."""
    return -torch.logsumexp(over_members(shares(weights, nll).log(), nll) - nll, dim=1)
