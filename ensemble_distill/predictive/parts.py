"""What many sub-ensembles of the same members predict, at once: for the ladder of `worth`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """S sub-ensembles on each of B rows.

    Attributes:
        pooled: their predictions, a predictive of S members.
        model: (B, S) their model uncertainty.
        nll: (B, S) of the pooled prediction, −ln p(y); None without labels.
    """

    pooled: Any
    model: Tensor
    nll: Tensor | None


def mixed(share: Tensor, values: Tensor) -> Tensor:
    """Means of members' values (B, M, …) by each sub-ensemble's shares (S, M), or (B, S, M) of each row: (B, S, …)."""
    of_rows = "sm" if share.dim() == 2 else "bsm"
    return torch.einsum(f"{of_rows},bm...->bs...", share.to(values), values)


def mixed_nll(share: Tensor, nll: Tensor) -> Tensor:
    """−ln Σ_m s_m exp(−nll_m) of each sub-ensemble, (B, S), from each member's nll (B, M)."""
    return -torch.logsumexp(share.to(nll).log() - nll.unsqueeze(1), dim=-1)
