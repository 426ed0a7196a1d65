"""Swaps columns with another row: each column of a table is replaced, by chance, with that of a row drawn at random.

The idea is that of MUNGE (Bucila, Caruana and Niculescu-Mizil 2006) and of AutoGluon's tabular distillation, without a
search for neighbors: rows become ones that are nowhere in the data, but each value is one that its column has. The
numbers that encode one category are swapped together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.data.views import mixup
from ensemble_distill.runtime.keys import uniform_row

PHASE = Phase.MIX
KINDS: frozenset[Kind] = frozenset({"features"})
SHARE = 0.25  # of the columns that are the other row's, on average


@dataclass(frozen=True)
class Swap:
    """Which columns are swapped.

    Attributes:
        key: the key of the draw.
    """

    key: Key

    def apply(self, own: Array, partner: Array, groups: tuple[int, ...] | None) -> Array:
        """(F,): each column whole, from one row or the other."""
        column = np.arange(len(own)) if groups is None else np.array(groups)
        swapped = uniform_row(int(column.max()) + 1, *self.key) < SHARE
        return np.where(swapped[column], partner, own)


def draw(key: Key, row: int, total: int) -> tuple[int, float, Swap]:
    """The partner's row, the own label's weight (its expected share of columns), and which columns are swapped."""
    partner, _ = mixup.draw(key, row, total)
    return partner, 1 - SHARE, Swap((*key, "columns"))
