"""Gaussian noise, drawn from the row alone: every severity adds the same normals, only larger.

On pixels its standard deviations are ImageNet-C's (Hendrycks & Dietterich 2019, arXiv:1903.12261). The range of other
kinds is unknown, so theirs are relative: for tensors, series and volumes to each channel's own deviation in that row,
for features to each column's over the rows. A constant channel therefore stays as it is.
"""

from __future__ import annotations

import numpy as np

from ensemble_distill.data.shifts import Origin
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.runtime.keys import normals

KINDS: frozenset[Kind] = frozenset({"pixels", "tensor", "features", "series", "volume"})
RELATIVE = (0.1, 0.2, 0.4, 0.6, 0.8)
AMOUNTS: dict[Kind, tuple[float, ...]] = {
    "pixels": (0.08, 0.12, 0.18, 0.26, 0.38),  # of [0, 1]
    "tensor": RELATIVE,
    "features": RELATIVE,
    "series": RELATIVE,
    "volume": RELATIVE,
}


def level(amount: float, kind: Kind) -> str:
    return f"σ {amount}" if kind == "pixels" else f"{amount} σ"


def apply(x: Array, amount: float, origin: Origin) -> Array:
    noisy: Array = x + amount * _unit(x, origin) * normals(x.shape, "shift", "noise", origin.row)
    return noisy


def _unit(x: Array, origin: Origin) -> Array | float:
    if origin.kind in ("tensor", "series", "volume"):
        every = tuple(range(1, x.ndim))
        deviation: Array = x.std(axis=every, keepdims=True, dtype=np.float64).astype(np.float32)
        return deviation
    return 1.0 if origin.scale is None else origin.scale
