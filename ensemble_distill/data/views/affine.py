"""A rotation, a zoom, a shear and a shift at once, bilinear; beyond the picture the border is repeated.

Members that agree on a row and on its crops come to differ on pictures a little outside of what they saw. And digits,
which must not be flipped, need a geometry too. Mirrored borders would put strokes at the edge of a digit.
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
ZOOM = math.log(1.25)  # of the zoom's logarithm, either way
SHIFT = 0.1  # of height and width, either way


@dataclass(frozen=True)
class Affine:
    """What was drawn for one picture.

    Attributes:
        rotation, shear: radians, counterclockwise.
        zoom: above 1 the picture grows.
        down, right: how far its center moves, as shares of height and width.
    """

    rotation: float
    shear: float
    zoom: float
    down: float
    right: float

    def apply(self, x: Array, kind: Kind) -> Array:
        """Pixels (H, W, C), moved, as float32 in [0, 1]; or a tensor (C, H, W), moved, float32."""
        planes = as_unit(x).transpose(2, 0, 1) if kind == "pixels" else x
        size = np.array(planes.shape[1:])
        center = (size - 1) / 2
        inverse = self._inverse()
        start = center - inverse @ (center + size * (self.down, self.right))
        moved = np.stack([ndimage.affine_transform(p, inverse, start, order=1, mode="nearest") for p in planes])
        moved = moved.astype(np.float32, copy=False)
        return moved.transpose(1, 2, 0) if kind == "pixels" else moved

    def _inverse(self) -> Array:
        """(2, 2): maps where a pixel is shown to where it comes from, as offsets (row, column) from the center."""
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        turned = np.array([[cos, -sin], [sin, cos]])
        sheared = np.array([[1.0, 0.0], [math.tan(self.shear), 1.0]])
        inverse: Array = np.linalg.inv(self.zoom * turned @ sheared)
        return inverse


def draw(key: Key, scale: Array | None) -> Affine:
    """Draws each amount uniformly within its bounds, the zoom by its logarithm."""
    rotation, shear, zoom, down, right = (2 * u - 1 for u in uniforms(5, *key))
    return Affine(ROTATION * rotation, SHEAR * shear, math.exp(ZOOM * zoom), SHIFT * down, SHIFT * right)
