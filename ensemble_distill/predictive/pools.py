"""How members' answers add up, one after the other, to what some of them predict together: for trying many choices."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Pool(Protocol):
    """Static: what is added up of each member, and the NLL of the sum.

    Attributes:
        NOBODY: the sum over no member.
    """

    NOBODY: float

    @staticmethod
    def parts(members: Any, y: Tensor, share: Tensor) -> Tensor:
        """What each member brings, (B, M, W), of the right answers y and the members' shares (M,)."""
        ...

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor: ...
    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """(C,), from what was joined (C, N, W) and the sum of its shares (C,)."""
        ...


class Mixtures:
    """Members that pool as Σ w_m p_m ÷ Σ w_m. The NLL needs only what they say of the right answer: W is 1."""

    NOBODY = -torch.inf

    @staticmethod
    def parts(members: Any, y: Tensor, share: Tensor) -> Tensor:
        """ln w_m p_m(y), (B, M, 1)."""
        parts: Tensor = (share.log() - members.nll(y).movedim(1, -1)).unsqueeze(-1)
        return parts

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        return torch.logaddexp(a, b)

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """(C,), from what was joined (C, N, 1) and the sum of its shares (C,)."""
        return share.log() - joined.squeeze(-1).mean(1)


class Products:
    """Members that pool as Π p_m^(w_m ÷ Σ w), normalized, which is the average of logits: W is K."""

    NOBODY = 0.0

    @staticmethod
    def parts(members: Any, y: Tensor, share: Tensor) -> Tensor:
        """w_m ln p_m, (B, M, K); in float32, since all of it is held at once."""
        parts: Tensor = (share.unsqueeze(-1) * members.log_probs()).float()
        return parts

    @staticmethod
    def join(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def nll(joined: Tensor, share: Tensor, y: Tensor) -> Tensor:
        """(C,), from what was joined (C, N, K) and the sum of its shares (C,)."""
        log_probs = (joined / share.to(joined)[:, None, None]).log_softmax(-1)
        return -log_probs[:, torch.arange(len(y)), y].mean(1)
