"""A member's answer at the ids drawn for a position, and at no others: p_m(id) ÷ q(id) for each.

q is the mean of the M members that ids were drawn from, so that their ratios are at most M. The ids and q are stored
once for all members, in `drawn`. From both, a reader computes weights whose sum over the ids is unbiased for any sum
over classes that p_m weighs, and so for a cross-entropy and its gradient. Everything else is lost: other temperatures,
entropies, the probability of any other class. Beside the ratios is the member's largest probability over all classes.

In float16, each number has a relative error of at most 0.05 %, or an absolute one of 3e-8 if it is below 6e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 65504.0  # the largest float16


def layout(shape: Sequence[int], dtype: str) -> np.dtype[np.void]:
    """A row's ratios at n ids, followed by the largest probability: (*L, n + 1)."""
    return np.dtype([("said", {"float16": "<f2", "float32": "<f4"}[dtype], tuple(shape))])


def encode(values: NDArray[np.floating[Any]], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Encode ratios and largest probabilities (B, *L, n + 1) as B records.

    Raises:
        OverflowError: a ratio exceeds the dtype, as is possible for a member that ids were not drawn from.
    """
    if record["said"].base == np.float16 and len(values) and float(values.max()) > LARGEST:
        raise OverflowError(f"a ratio of {float(values.max()):.3g}")
    records = np.empty(len(values), record)
    records["said"] = values
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Decode B records to ratios and largest probabilities (B, *L, n + 1)."""
    said: NDArray[np.float32] = records["said"].astype(np.float32)
    return said
