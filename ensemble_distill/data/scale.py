"""The unit of noise for features: each column's standard deviation."""

from __future__ import annotations

import numpy as np

from ensemble_distill.data.source import Array


def column_scale(x: Array) -> Array:
    """Standard deviation of each column, float32 (F,), of features (N, F); 0 for a constant column, which stays
    as it is: members never learned what to do with another value there."""
    varies = x.min(axis=0) < x.max(axis=0)  # a constant's own deviation may round to a little above 0
    return np.where(varies, x.std(axis=0, dtype=np.float64), 0.0).astype(np.float32)
