"""The undistorted example; all its views are the same."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Array, Kind

PHASE = Phase.GEOMETRY
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor", "features", "tokens", "series", "volume", "text", "several"})


@dataclass(frozen=True)
class Unchanged:
    def apply(self, x: Array, kind: Kind) -> Array:
        return x


def draw(key: Key, scale: Array | None) -> Unchanged:
    return Unchanged()
