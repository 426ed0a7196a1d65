"""Evenly spaced rows of a split, where a few stand for all."""

from __future__ import annotations

import numpy as np


def spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` rows, evenly spaced and in order, with the first and, for two or more, the last."""
    rows: list[int] = np.unique(np.linspace(0, total - 1, count).astype(np.int64)).tolist()
    return rows
