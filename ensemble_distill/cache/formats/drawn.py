"""The ids drawn for a position, and how they were drawn: what all members' `sampled` records of it share.

The first id is the likeliest class of q, and certain. Any other class c was drawn with the probability min(1, q(c) ÷
t). Nothing is lost: ids are stored as integers, q and t in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES = 2**24  # values are decoded to float32, which is exact for integers up to this one


def layout(shape: Sequence[int], dtype: str) -> np.dtype[np.void]:
    """A row's n ids, q at each, and t: (*L, 2n + 1) numbers in all; `dtype` is that of the ids."""
    *positions, width = shape
    n = (width - 1) // 2
    ids = {"uint16": "<u2", "uint32": "<u4"}[dtype]
    t = ("t", "<f4", tuple(positions)) if positions else ("t", "<f4")
    return np.dtype([("ids", ids, (*positions, n)), ("q", "<f4", (*positions, n)), t])


def encode(values: NDArray[np.floating[Any]], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Encode ids, q and t (B, *L, 2n + 1) as B records."""
    records, n = np.empty(len(values), record), values.shape[-1] // 2
    records["ids"], records["q"], records["t"] = values[..., :n], values[..., n : 2 * n], values[..., -1]
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Decode B records to ids, q and t (B, *L, 2n + 1)."""
    ids = records["ids"].astype(np.float32)
    return np.concatenate([ids, records["q"], records["t"][..., None]], axis=-1, dtype=np.float32)
