"""Predictions of many sub-ensembles of the same members at once, for the ladder of `worth`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """What S sub-ensembles predict for each of B rows.

    Attributes:
        pooled: the pooled predictions, as a predictive with S members.
        model: (B, S), the model uncertainties.
        nll: (B, S), −ln p(y) of the pooled predictions; None without labels.
    """

    pooled: Any
    model: Tensor
    nll: Tensor | None


def mixed(share: Tensor, values: Tensor) -> Tensor:
    """Each sub-ensemble's weighted mean of members' values (B, M, …), (B, S, …); shares are (S, M) or (B, S, M)."""
    of_rows = "sm" if share.dim() == 2 else "bsm"
    return torch.einsum(f"{of_rows},bm...->bs...", share.to(values), values)


def mixed_nll(share: Tensor, nll: Tensor) -> Tensor:
    """−ln Σ_m s_m exp(−nll_m) for each sub-ensemble, (B, S), from the members' nll (B, M)."""
    return -torch.logsumexp(share.to(nll).log() - nll.unsqueeze(1), dim=-1)
