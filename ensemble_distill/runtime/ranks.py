"""Which of how many processes this one is, as torchrun says it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """0 ≤ index < world."""

    index: int = 0
    world: int = 1


ALONE = Rank()


def current() -> Rank:
    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
