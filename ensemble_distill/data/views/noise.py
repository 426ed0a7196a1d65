"""Gaussian noise at the source's own size, so that members of several input sizes see the same noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from ensemble_distill.data.rendering import as_unit
from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.runtime.keys import normals

PHASE = Phase.NOISE
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor", "features", "series", "volume"})
IN_UNITS = True  # the noise is in units of the source's scale
NOISE = 0.1  # standard deviation: on pixels in [0, 1], on tensors as they are, otherwise in units of the scale


@dataclass(frozen=True)
class Noise:
    """What was drawn for one example.

    Attributes:
        key: the key of the normals.
        scale: the unit of each feature or channel, 1 if None; a fact of the data, not part of what was drawn.
    """

    key: Key
    scale: Array | None = field(default=None, compare=False, repr=False)

    def apply(self, x: Array, kind: Kind) -> Array:
        """x with noise, float32 of x's shape; pixels are clamped to [0, 1]. Two mixed rows have noise of their own."""
        if kind == "pixels":
            noisy: Array = as_unit(x) + NOISE * normals(x.shape, *self.key)
            return noisy.clip(0, 1)
        unit = 1 if self.scale is None else self.scale
        moved: Array = x + NOISE * unit * normals(x.shape, *self.key)
        return moved


def draw(key: Key, scale: Array | None) -> Noise:
    return Noise(key, scale)
