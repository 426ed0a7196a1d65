"""A rotation, a zoom, a shear and a shift at once, bilinear; what comes from outside repeats the border.

Members that agree on a row and on its crops come apart on pictures that lie a little outside of what they saw; and
digits, which must not be flipped, need a geometry too. Mirrored borders would put strokes at the edge of a digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ensemble_distill.data.rendering import as_unit
from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.runtime.keys import uniforms

PHASE = Phase.GEOMETRY
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
ROTATION, SHEAR = math.radians(20), math.radians(15)  # at most, either way
ZOOM = math.log(1.25)  # of the logarithm, either way
SHIFT = 0.1  # of height and width, either way


@dataclass(frozen=True)
class Affine:
    """Attributes:
    rotation, shear: radians, counterclockwise.
    zoom: above 1 the picture grows.
    down, right: where its center goes, as shares of height and width.
    """

    rotation: float
    shear: float
    zoom: float
    down: float
    right: float

    def apply(self, x: Array, kind: Kind) -> Array:
        """Pixels (H, W, C), which become floats in [0, 1], or a tensor (C, H, W); float32 of x's shape."""
        planes = as_unit(x).transpose(2, 0, 1) if kind == "pixels" else x
        size = np.array(planes.shape[1:])
        center = (size - 1) / 2
        inverse = self._inverse()
        start = center - inverse @ (center + size * (self.down, self.right))
        moved = np.stack([ndimage.affine_transform(p, inverse, start, order=1, mode="nearest") for p in planes])
        moved = moved.astype(np.float32, copy=False)
        return moved.transpose(1, 2, 0) if kind == "pixels" else moved

    def _inverse(self) -> Array:
        """(2, 2), from where a pixel is shown, (row, column), to where it comes from."""
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        turned = np.array([[cos, -sin], [sin, cos]])
        sheared = np.array([[1.0, 0.0], [math.tan(self.shear), 1.0]])
        inverse: Array = np.linalg.inv(self.zoom * turned @ sheared)
        return inverse


def draw(key: Key, scale: Array | None) -> Affine:
    """Each uniform within its bounds."""
    rotation, shear, zoom, down, right = (2 * u - 1 for u in uniforms(5, *key))
    return Affine(ROTATION * rotation, SHEAR * shear, math.exp(ZOOM * zoom), SHIFT * down, SHIFT * right)
