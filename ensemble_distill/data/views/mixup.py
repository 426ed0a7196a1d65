"""Mixup (Zhang et al. 2018, arXiv:1710.09412) with Beta(1, 1): a uniform weight and another row.

Each of the two is distorted on its own before they are mixed. A number that is a category's index is taken from the row
that weighs more, since there is no category between two indices.
"""

from __future__ import annotations

from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Kind
from ensemble_distill.runtime.keys import uniforms

PHASE = Phase.MIX
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor", "features", "series", "volume"})


def draw(key: Key, row: int, total: int) -> tuple[int, float]:
    """The partner's row and the own row's weight.

    The partner is uniform over the other rows (the row itself if there are none), the weight over [0, 1).
    """
    place, weight = uniforms(2, *key)
    if total == 1:
        return row, weight
    partner = int(place * (total - 1))
    return partner + (partner >= row), weight
