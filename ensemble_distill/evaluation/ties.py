"""Ranks that do not depend on rounding.

Members that vote with a few fixed probabilities, such as trees, give many rows the same uncertainty, which differs in
the last bits of float64 with the order of summation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

ROUNDING = 1e-12  # relative to the unit plus the values themselves


def ranks(values: NDArray[np.float64], unit: float = 1.0) -> NDArray[np.float64]:
    """Ranks from 1, (N,); values that are equal up to rounding share their mean rank.

    Args:
        values: (N,), without NaN.
        unit: the unit of the values; see `Task.unit`.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    apart = np.diff(ordered) > ROUNDING * (unit + np.abs(ordered[1:]))
    groups = np.empty(len(values), np.int64)
    groups[order] = np.r_[0, np.cumsum(apart)][: len(values)]
    found: NDArray[np.float64] = rankdata(groups)
    return found


def shared(values: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (N,), each replaced by the mean over all of the same rank, in `places`.

    Equal rows are in the order of the data, which may be sorted: this is what to expect of a random one.
    """
    _, tied = np.unique(places, return_inverse=True)
    found: NDArray[np.float64] = (np.bincount(tied, values) / np.bincount(tied))[tied]
    return found
