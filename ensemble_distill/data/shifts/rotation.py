"""Rotation counterclockwise about the center, bilinear; what lies beyond the picture is black.

Ovadia et al. 2019 (arXiv:1906.02530) and Hydra (Tran et al. 2020, arXiv:2001.04694) rotate MNIST in this way. The value
of black in a tensor is unknown, and 0 is gray in a normalized one, so a channel's lowest value stands for black.
"""

from __future__ import annotations

from scipy import ndimage

from ensemble_distill.data.shifts import Origin
from ensemble_distill.data.source import Array, Kind

KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
AMOUNTS: dict[Kind, tuple[float, ...]] = dict.fromkeys(KINDS, (18, 36, 54, 72, 90))  # degrees


def level(amount: float, kind: Kind) -> str:
    return f"{amount}°"


def apply(x: Array, amount: float, origin: Origin) -> Array:
    black = x.min(axis=(1, 2), keepdims=True) if origin.kind == "tensor" else 0.0
    # "grid-constant" blends the border into the black outside; "constant" would cut off its outer half pixel
    rotated: Array = ndimage.rotate(x - black, amount, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
    return rotated + black
