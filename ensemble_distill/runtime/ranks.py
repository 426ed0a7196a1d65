"""Which of how many processes this one is, as torchrun says it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rank:
    """0 ≤ index < world."""

    index: int = 0
    world: int = 1


ALONE = Rank()


def current() -> Rank:
    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def summed(value: Tensor) -> Tensor:
    """The sum of every rank's value, without gradient; the value itself where there is one process."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total
