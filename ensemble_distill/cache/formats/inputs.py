"""Inputs of views that move them along the members' gradients, as a network is shown them.

"uint8" stores an input in [0, 1] as 255 times itself, rounded; "float32" loses nothing. An input moved by about one
level per value has, after rounding to 8 bits, still moved as far along the gradient on average: rounding only adds
noise across it. Members and student are both shown the rounded input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def layout(shape: Sequence[int], dtype: str) -> np.dtype[np.void]:
    """The record of one input (C, H, W)."""
    return np.dtype([("x", {"uint8": "|u1", "float32": "<f4"}[dtype], tuple(shape))])


def encode(values: NDArray[np.floating[Any]], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Encode inputs (B, C, H, W) as B records."""
    records = np.empty(len(values), record)
    records["x"] = np.rint(255 * values) if record["x"].base == np.uint8 else values
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Decode records of any shape (...) to inputs (..., C, H, W)."""
    x: NDArray[np.float32] = records["x"].astype(np.float32)
    if records["x"].dtype == np.uint8:
        x /= np.float32(255)
    return x
