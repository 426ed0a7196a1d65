"""The ids that were drawn of a position, and how: what all members' `sampled` records of it share.

The first id is the likeliest class of q, and certain. Another class c was drawn with the probability min(1, q(c) ÷ t).
Nothing is lost: ids are stored whole, q and t in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES = 2**24  # the integers that float32, which values are decoded to, holds


def layout(shape: Sequence[int], dtype: str) -> np.dtype[np.void]:
    """Of a row: n ids, q of each, and t, (*L, 2n + 1) numbers in all; `dtype` is that of the ids."""
    *positions, width = shape
    n = (width - 1) // 2
    ids = {"uint16": "<u2", "uint32": "<u4"}[dtype]
    t = ("t", "<f4", tuple(positions)) if positions else ("t", "<f4")
    return np.dtype([("ids", ids, (*positions, n)), ("q", "<f4", (*positions, n)), t])


def encode(values: NDArray[np.floating[Any]], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Ids, q and t (B, *L, 2n + 1) to B records."""
    records, n = np.empty(len(values), record), values.shape[-1] // 2
    records["ids"], records["q"], records["t"] = values[..., :n], values[..., n : 2 * n], values[..., -1]
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """B records to the same values."""
    ids = records["ids"].astype(np.float32)
    return np.concatenate([ids, records["q"], records["t"][..., None]], axis=-1, dtype=np.float32)
