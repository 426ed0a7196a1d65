"""What a network was shown, of views that move inputs along the members' gradients.

As "uint8" it is an input in [0, 1] times 255, rounded; as "float32" nothing is lost. Rounded to 8 bits, an input moved
by about a level a value has still moved as far along the gradient, on average: what rounding adds is noise across it.
Members and student are shown the rounded one.
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
    """Inputs (B, C, H, W) to B records."""
    records = np.empty(len(values), record)
    records["x"] = np.rint(255 * values) if record["x"].base == np.uint8 else values
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Records of any shape (...) to inputs (..., C, H, W)."""
    x: NDArray[np.float32] = records["x"].astype(np.float32)
    if records["x"].dtype == np.uint8:
        x /= np.float32(255)
    return x
