"""What an ensemble's own sub-ensembles get, by their size: the ladder that a student's figures are read from."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.evaluation.worth import NOTHING, Column, Ladder, scaled_l1
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.predictive.weighted import shares

MOST = 60  # sub-ensembles of a size
FEWEST = 10  # of a size, where rows and classes are many
WORK = 2e10  # numbers to go through for all sub-ensembles and rows together, about: a minute or two
AT_ONCE = 2**23  # numbers held at once
KEPT = 2**27  # model uncertainties that are kept; beyond, of every second row, third row, …
SEED = 0


class Climb:
    """Collects what the members say of rows, and makes the ladder of them.

    All sub-ensembles of a size are taken where there are at most 60 of them, else 60 that are drawn, by a fixed seed.
    Members of weight 0 are no part of the ensemble.

    Args:
        pooled: the positions of the members that are.
        rows: how many will come.
        width: how many numbers a member says of a row.
    """

    def __init__(self, pooled: tuple[int, ...], rows: int, width: int) -> None:
        self.most = int(max(FEWEST, min(MOST, WORK / (rows * width * max(1, len(pooled))))))
        self._parts = [some for size in range(1, len(pooled) + 1) for some in drawn(pooled, size, self.most)]
        self._sizes = np.array([len(some) for some in self._parts])
        self._stride = -(-rows * len(self._parts) // KEPT)
        self._nll: list[Tensor] = []
        self._kl: list[Tensor] = []
        self._model: list[Tensor] = []
        self._ensemble: list[Tensor] = []
        self._rows = 0

    def add(self, ensemble: Predictive, y: Tensor | None) -> None:
        """B more rows and, where there are any, their labels y."""
        means = ensemble.means()
        share = shares(ensemble.weights, means)
        some = means.new_zeros(len(self._parts), len(share))
        for at, part in enumerate(map(list, self._parts)):
            some[at, part] = share[part] / share[part].sum()
        pooled, step = ensemble.pooled(), max(1, AT_ONCE // max(1, means[:, 0].numel()))
        found = [ensemble.parts(some[at : at + step], y) for at in range(0, len(some), step)]
        self._kl.append(torch.cat([pooled.kl(parts.pooled).sum(0) for parts in found]))
        if y is not None:
            self._nll.append(torch.cat([parts.nll.sum(0) for parts in found if parts.nll is not None]))
        kept = slice(-self._rows % self._stride, None, self._stride)
        self._model.append(torch.cat([parts.model[kept].float() for parts in found], dim=1))
        summary = ensemble.summary()
        self._ensemble.append(torch.stack([summary.model, summary.total])[:, kept])
        self._rows += len(means)

    def ladder(self) -> Ladder:
        """Of all rows that were added, one at least."""
        return Ladder(
            nll=self._by_size(torch.stack(self._nll).sum(0) / self._rows) if self._nll else None,
            mean_kl=self._by_size(torch.stack(self._kl).sum(0) / self._rows),
            model_uncertainty_l1=self._l1(torch.cat(self._model), *torch.cat(self._ensemble, dim=1)),
        )

    def _by_size(self, of_parts: Tensor) -> Column:
        sums = np.bincount(self._sizes, weights=of_parts.numpy())
        means: Column = (sums[1:] / np.bincount(self._sizes)[1:]).tolist()
        return means

    def _l1(self, theirs: Tensor, ensemble: Tensor, total: Tensor) -> Column | None:
        if not float(ensemble.mean()) > NOTHING * float(total.mean()):
            return None
        of_parts = [
            1.0 if size == 1 else scaled_l1(one.double().numpy(), ensemble.numpy())
            for size, one in zip(self._sizes, theirs.unbind(1), strict=True)
        ]
        return self._by_size(torch.tensor(of_parts, dtype=torch.float64))


def drawn(members: tuple[int, ...], size: int, most: int) -> list[tuple[int, ...]]:
    """All choices of so many members where there are at most so many, else that many different ones, by a seed."""
    if comb(len(members), size) <= most:
        return list(combinations(members, size))
    rng, found = np.random.default_rng([SEED, size]), set[tuple[int, ...]]()
    while len(found) < most:
        found.add(tuple(sorted(rng.choice(members, size, replace=False).tolist())))
    return sorted(found)
