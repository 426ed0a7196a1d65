"""Contrast lowered about each channel's own mean, by ImageNet-C's factors.

Source: Hendrycks & Dietterich 2019, arXiv:1903.12261. A normalized tensor loses what its pixels would have lost, since
the mean is normalized with them.
"""

from __future__ import annotations

import numpy as np

from ensemble_distill.data.shifts import Origin
from ensemble_distill.data.source import Array, Kind

KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
AMOUNTS: dict[Kind, tuple[float, ...]] = dict.fromkeys(KINDS, (0.4, 0.3, 0.2, 0.1, 0.05))  # of the contrast remain


def level(amount: float, kind: Kind) -> str:
    return f"× {amount}"


def apply(x: Array, amount: float, origin: Origin) -> Array:
    mean = x.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    lowered: Array = mean + amount * (x - mean)
    return lowered
