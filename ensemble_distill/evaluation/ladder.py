"""What an ensemble's own sub-ensembles get, by their size: the ladder that a student's figures are read from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.data.source import Array
from ensemble_distill.evaluation.worth import NOTHING, Column, Ladder, scaled_l1
from ensemble_distill.predictive.answered import answering
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.predictive.weighted import shares
from ensemble_distill.runtime.grown import Grown
from ensemble_distill.runtime.keys import permutation

MOST = 60  # sub-ensembles of a size
FEWEST = 10  # of a size, where rows and classes are many
WORK = 2e10  # numbers to go through for all sub-ensembles and rows together, about: a minute or two
AT_ONCE = 2**23  # numbers held at once
KEPT = 2**27  # model uncertainties that are kept; beyond, of every second row, third row, …
SEED = 0


class Climb:
    """Collects what the members say of rows, and makes the ladder of them.

    All sub-ensembles of a size are taken where there are at most 60 of them, else 60 that are drawn, by a fixed seed.
    Members of weight 0 are no part of the ensemble. Of a row that some members do not answer the sub-ensemble is the
    first k who do, its own members before others: those by a fixed seed; where fewer answer, it is those.

    Args:
        pooled: the positions of the members that are.
        rows: how many will come.
        width: how many numbers a member says of a row.
    """

    def __init__(self, pooled: tuple[int, ...], rows: int, width: int) -> None:
        self.most = int(max(FEWEST, min(MOST, WORK / (rows * width * max(1, len(pooled))))))
        self._parts = [some for size in range(1, len(pooled) + 1) for some in drawn(pooled, size, self.most)]
        self._turns = [_turns(some, pooled, at) for at, some in enumerate(self._parts)]
        self._answering = 1  # members, at most, of a row
        self._sizes = np.array([len(some) for some in self._parts])
        self._stride = -(-rows * len(self._parts) // KEPT)
        self._nll: Tensor | None = None  # sums over rows
        self._kl: Tensor | float = 0.0
        self._model, self._ensemble = Grown(), Grown()
        self._rows = 0

    def add(self, ensemble: Predictive, y: Tensor | None) -> None:
        """B more rows and, where there are any, their labels y."""
        pooled, shares_of = ensemble.pooled(), self._shares(ensemble)
        step = max(1, AT_ONCE // max(1, ensemble.means()[:, 0].numel()))
        found = [ensemble.parts(shares_of(slice(at, at + step)), y) for at in range(0, len(self._parts), step)]
        self._kl = self._kl + torch.cat([pooled.kl(parts.pooled).sum(0) for parts in found])
        if y is not None:
            nll = torch.cat([parts.nll.sum(0) for parts in found if parts.nll is not None])
            self._nll = nll if self._nll is None else self._nll + nll
        kept = slice(-self._rows % self._stride, None, self._stride)
        several, summary = answering(ensemble), ensemble.summary()
        uncertain = summary.model if several is None else torch.where(several > 1, summary.model, torch.nan)
        self._model.add(torch.cat([parts.model[kept].float() for parts in found], dim=1))
        self._ensemble.add(torch.stack([uncertain, summary.total], dim=1)[kept])
        self._answering = max(self._answering, ensemble.members if several is None else int(several.max()))
        self._rows += len(summary.model)

    def _shares(self, ensemble: Predictive) -> Callable[[slice], Tensor]:
        """How much each member counts in some sub-ensembles: (S, M), or (B, S, M) where not all answer every row."""
        weights = shares(ensemble.weights, ensemble.means())

        def of_all(some: slice) -> Tensor:
            chosen = weights.new_zeros(len(self._parts[some]), ensemble.members)
            for at, part in enumerate(map(list, self._parts[some])):
                chosen[at, part] = weights[part] / weights[part].sum()
            return chosen

        def of_each_row(some: slice) -> Tensor:
            turns = torch.tensor(self._turns[some])  # (S, P): members in the order in which they are asked
            there = weights[:, turns] > 0  # (B, S, P)
            taken = there & (there.cumsum(-1) <= torch.from_numpy(self._sizes[some])[:, None])
            given = weights.new_zeros(len(weights), len(turns), ensemble.members)
            given.scatter_(2, turns.expand(len(weights), -1, -1), torch.where(taken, weights[:, turns], 0.0))
            return given / given.sum(-1, keepdim=True)

        return of_all if weights.dim() == 1 else of_each_row

    def ladder(self) -> Ladder | None:
        """Of all rows that were added, one at least; None where one member answers each of them."""
        if self._answering < 2:
            return None
        return Ladder(
            nll=None if self._nll is None else self._by_size(self._nll / self._rows),
            mean_kl=self._by_size(torch.as_tensor(self._kl) / self._rows),
            model_uncertainty_l1=self._l1(self._model.all(), *self._ensemble.all().T),
        )

    def _by_size(self, of_parts: Tensor) -> Column:
        sums = np.bincount(self._sizes, weights=of_parts.numpy())
        means: Column = (sums[1:] / np.bincount(self._sizes)[1:]).tolist()
        return means[: self._answering]

    def _l1(self, theirs: Array, ensemble: Array, total: Array) -> Column | None:
        known = ~np.isnan(ensemble)
        ensemble, total, theirs = ensemble[known], total[known], theirs[known]
        if not len(ensemble) or not float(ensemble.mean()) > NOTHING * float(total.mean()):
            return None
        of_parts = [
            1.0 if size == 1 else scaled_l1(one.astype(np.float64), ensemble)
            for size, one in zip(self._sizes, theirs.T, strict=True)
        ]
        return self._by_size(torch.tensor(of_parts, dtype=torch.float64))


def _turns(some: tuple[int, ...], pooled: tuple[int, ...], at: int) -> list[int]:
    """All members, in the order in which a sub-ensemble takes them: its own, and then others by a seed."""
    others = [member for member in pooled if member not in some]
    return [*some, *(others[place] for place in permutation(len(others), "stand in", at))]


def drawn(members: tuple[int, ...], size: int, most: int) -> list[tuple[int, ...]]:
    """All choices of so many members where there are at most so many, else that many different ones, by a seed."""
    if comb(len(members), size) <= most:
        return list(combinations(members, size))
    rng, found = np.random.default_rng([SEED, size]), set[tuple[int, ...]]()
    while len(found) < most:
        found.add(tuple(sorted(rng.choice(members, size, replace=False).tolist())))
    return sorted(found)
