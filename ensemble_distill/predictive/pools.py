"""How members' predictions add up one by one to a pooled prediction, so that many choices of members can be tried."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Pool(Protocol):
    """A way to add up members: the part that each contributes, the sum, and the NLL of the sum. All methods are static.

    N rows, C choices of members, W numbers per row in a part.

    Attributes:
        NOBODY: the sum over no members.
    """

    NOBODY: float

    @staticmethod
    def parts(members: Any, y: Tensor, share: Tensor) -> Tensor:
        """Each member's part, (B, M, W), from the right answers y and the members' shares (M,)."""
        ...

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor: ...
    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """Mean NLL of each choice, (C,), from its joined parts (C, N, W) and the sum of its shares (C,)."""
        ...


class Mixtures:
    """Pooling as Σ w_m p_m ÷ Σ w_m; W = 1, since the NLL needs only each member's probability of the right answer."""

    NOBODY = -torch.inf

    @staticmethod
    def parts(members: Any, y: Tensor, share: Tensor) -> Tensor:
        """ln (w_m p_m(y)), (B, M, 1)."""
        parts: Tensor = (share.log() - members.nll(y).movedim(1, -1)).unsqueeze(-1)
        return parts

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        return torch.logaddexp(a, b)

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """See `Pool.nll`; joined is (C, N, 1)."""
        return share.log() - joined.squeeze(-1).mean(1)


class Products:
    """Pooling as Π p_m^(w_m ÷ Σ w), normalized, which averages logits; W = K."""

    NOBODY = 0.0

    @staticmethod
    def parts(members: Any, y: Tensor, share: Tensor) -> Tensor:
        """w_m ln p_m, (B, M, K); in float32, since all parts are held in memory at once."""
        parts: Tensor = (share.unsqueeze(-1) * members.log_probs()).float()
        return parts

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """See `Pool.nll`; joined is (C, N, K)."""
        log_probs = (joined / share.to(joined)[:, None, None]).log_softmax(-1)
        return -log_probs[:, torch.arange(len(y)), y].mean(1)
