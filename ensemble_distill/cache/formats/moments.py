"""Means, followed by log-variances, in float32 whatever `cache.dtype` says: nothing is lost.

float16 would round away the members' differences far from 0. All numbers of a row that the member does not answer are
NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def layout(shape: Sequence[int], dtype: str) -> np.dtype[np.void]:
    """A row's means and log-variances (2D,) of D targets."""
    return np.dtype([("moments", "<f4", tuple(shape))])


def encode(values: NDArray[np.floating[Any]], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Encode moments (B, 2D), each row finite or all NaN, as B records."""
    records = np.empty(len(values), record)
    records["moments"] = values
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Decode B records to moments (B, 2D)."""
    moments: NDArray[np.float32] = records["moments"].astype(np.float32)
    return moments
