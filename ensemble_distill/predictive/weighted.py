"""Weighted means over members.

Weights are (M,), or (B, M) if some members do not answer some rows, where their weights are 0; see `answered`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shares(weights: Tensor | None, like: Tensor) -> Tensor:
    """Weights normalized to sum to 1 over members, (M,) or (B, M), in the dtype of `like` (B, M, ...).

    They are equal for None, and NaN on a row that no member answers.
    """
    if weights is None:
        return like.new_full((like.shape[1],), 1.0 / like.shape[1])
    weights = weights.to(like)
    # converted first: a sum that is 1 only in float32 would bias model uncertainty in float64
    return weights / weights.sum(-1, keepdim=True)


def over_members(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (M,) or (B, M), shaped to broadcast over values (B, M, ...)."""
    rows = 1 if weights.dim() == 1 else len(weights)
    return weights.view(rows, -1, *[1] * (values.dim() - 2))


def log_shares(weights: Tensor | None, like: Tensor) -> Tensor:
    """ln of `shares`, shaped to broadcast over `like` (B, M, ...); of weight 0 a finite number whose exp is 0.

    Exported, a logsumexp whose first summand is -inf is not shifted by its maximum in onnxruntime 1.32, and underflows.
    """
    return over_members(shares(weights, like).log().clamp_min(torch.finfo(like.dtype).min / 4), like)


def weighted_mean(weights: Tensor | None, values: Tensor) -> Tensor:
    """The weighted mean of values (B, M, ...) over members, (B, ...)."""
    return (values * over_members(shares(weights, values), values)).sum(1)


def mixture_nll(weights: Tensor | None, nll: Tensor) -> Tensor:
    """−ln Σ_m w_m exp(−nll_m), (B, ...), from each member's −ln p_m(y), (B, M, ...)."""
    return -torch.logsumexp(log_shares(weights, nll) - nll, dim=1)
