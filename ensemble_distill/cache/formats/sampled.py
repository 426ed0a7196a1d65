"""What a member says of the ids that were drawn of a position, and no others: p_m(id) ÷ q(id) of each, at most M.

q is the mean of the members that ids were drawn from; the ids themselves, and q, are stored once for all members, in
`drawn`. From both a reader gets weights whose sum over ids is unbiased for any sum over classes that p_m weighs, and so
for a cross-entropy and its gradient. What is lost is everything else: other temperatures, entropies, the probability of
any other class. Beside the ratios stands the member's largest probability, exactly.

In float16 each number is off by 0.02 % of itself at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 65504.0  # the largest float16


def layout(shape: Sequence[int], dtype: str) -> np.dtype[np.void]:
    """Of a row: the ratios of n ids and behind them the largest probability, (*L, n + 1)."""
    return np.dtype([("said", {"float16": "<f2", "float32": "<f4"}[dtype], tuple(shape))])


def encode(values: NDArray[np.floating[Any]], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Ratios and largest probabilities (B, *L, n + 1) to B records.

    Raises:
        OverflowError: a ratio is larger than the dtype holds, as it can be of a member that ids were not drawn from.
    """
    if record["said"].base == np.float16 and len(values) and float(values.max()) > LARGEST:
        raise OverflowError(f"a ratio of {float(values.max()):.3g}")
    records = np.empty(len(values), record)
    records["said"] = values
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """B records to the same values."""
    said: NDArray[np.float32] = records["said"].astype(np.float32)
    return said
