"""What a network with positions returns: of a tuple its first, and of its positions the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def said(returned: Any) -> Any:
    """The tensor in what a network returned: itself, the first of a tuple whose others are its state, or `logits`."""
    if isinstance(returned, Mapping) and "logits" in returned:
        return returned["logits"]
    if isinstance(returned, tuple | list) and returned:
        return returned[0]
    return returned


def at_positions(returned: Any, positions: int) -> Any:
    """The same at the last L positions, (B, L, …); as it is where it is not a tensor, for others to refuse."""
    found = said(returned)
    if isinstance(found, Tensor) and found.dim() == 3 and found.shape[1] >= positions:
        return found[:, -positions:]
    return found


class Positions(nn.Module):
    """A network from ids (B, C + L) to what it says of the last L, (B, L, …).

    It starts without a state, which it may return beside.
    """

    def __init__(self, network: nn.Module, positions: int) -> None:
        super().__init__()
        self.network, self.positions = network, positions

    def forward(self, ids: Tensor) -> Any:
        return at_positions(self.network(ids), self.positions)
