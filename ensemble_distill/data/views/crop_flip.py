"""A shift by up to an eighth of height and width, borders reflected, and a horizontal flip half of the time.

On 32 × 32 images that is the usual crop from 4 pixels of padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.runtime.keys import uniforms

PHASE = Phase.GEOMETRY
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})


@dataclass(frozen=True)
class CropFlip:
    """What was drawn for one picture.

    Attributes:
        top, left: where the window lies, as a share in [0, 1) of the whole pixels that it can move.
        flip: whether the picture is mirrored left to right.
    """

    top: float
    left: float
    flip: bool

    def apply(self, x: Array, kind: Kind) -> Array:
        """Pixels (H, W, C) or a tensor (C, H, W), moved, of x's shape and dtype."""
        axis = 0 if kind == "pixels" else 1
        rows = _window(x.shape[axis], _shift(x.shape[axis], self.top), False)
        columns = _window(x.shape[axis + 1], _shift(x.shape[axis + 1], self.left), self.flip)
        moved: Array = x.take(rows, axis=axis).take(columns, axis=axis + 1)
        return moved


def draw(key: Key, scale: Array | None) -> CropFlip:
    top, left, side = uniforms(3, *key)
    return CropFlip(top, left, side < 0.5)


def _shift(size: int, share: float) -> int:
    """A whole number of pixels within ± size ÷ 8; a uniform share makes each equally likely."""
    reach = size // 8
    return int(share * (2 * reach + 1)) - reach


@lru_cache(maxsize=1024)
def _window(size: int, shift: int, flip: bool) -> Array:
    """The index of the source pixel that each pixel shows, reflected at the borders without repeating the edge."""
    index = np.abs(np.arange(size) + shift)
    index = np.where(index < size, index, 2 * (size - 1) - index)
    return index[::-1].copy() if flip else index
