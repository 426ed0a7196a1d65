"""Evenly spread rows of a split, where a few stand for all."""

from __future__ import annotations

import numpy as np


def spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` rows in their order, the first and the last among them; all where there are fewer."""
    rows: list[int] = np.unique(np.linspace(0, total - 1, count).astype(np.int64)).tolist()
    return rows
