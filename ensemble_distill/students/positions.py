"""Reading the output of a network with positions: the first of a tuple, at the last positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def said(returned: Any) -> Any:
    """The tensor in a network's output: the output itself, the first of a tuple with a state, or `logits`."""
    if isinstance(returned, Mapping) and "logits" in returned:
        return returned["logits"]
    if isinstance(returned, tuple | list) and returned:
        return returned[0]
    return returned


def at_positions(returned: Any, positions: int) -> Any:
    """The tensor in a network's output at the last L positions, (B, L, …).

    Any other output is returned unchanged, for the caller to refuse.
    """
    found = said(returned)
    if isinstance(found, Tensor) and found.dim() == 3 and found.shape[1] >= positions:
        return found[:, -positions:]
    return found


class Positions(nn.Module):
    """A network from ids (B, C + L) to its output at the last L positions, (B, L, …).

    The network starts without a state; it may return one along with its output.
    """

    def __init__(self, network: nn.Module, positions: int) -> None:
        super().__init__()
        self.network, self.positions = network, positions

    def forward(self, ids: Tensor) -> Any:
        return at_positions(self.network(ids), self.positions)
