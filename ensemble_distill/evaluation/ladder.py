"""The figures of an ensemble's sub-ensembles by size: the ladder from which a student's worth is read."""

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

MOST = 60  # sub-ensembles of each size
FEWEST = 10  # sub-ensembles of each size, if rows and classes are many
WORK = 2e10  # numbers to process over all sub-ensembles and rows, roughly: a minute or two
AT_ONCE = 2**23  # numbers in memory at once
KEPT = 2**27  # model uncertainties in memory; of more, only those of every second row, third row, … are kept
SEED = 0


class Climb:
    """Collects the members' predictions for rows, and makes a ladder from them.

    Of each size, all sub-ensembles are used if there are at most `most`, else as many drawn ones, by a fixed seed.
    `most` is 60, and falls to 10 at least if rows and classes are many. Members of weight 0 are not part of the
    ensemble. On a row that some members do not answer, a sub-ensemble of k is the first k who do: its own members
    first, then others in an order fixed by a seed. If fewer than k answer, it is those.

    Args:
        pooled: the positions of the members with nonzero weight.
        rows: the number of answers to come.
        width: the number of values in a member's answer.
    """

    def __init__(self, pooled: tuple[int, ...], rows: int, width: int) -> None:
        self.most = int(max(FEWEST, min(MOST, WORK / (rows * width * max(1, len(pooled))))))
        self._parts = [some for size in range(1, len(pooled) + 1) for some in drawn(pooled, size, self.most)]
        self._turns = [_turns(some, pooled, at) for at, some in enumerate(self._parts)]
        self._answering = 1  # the most members that answer a row
        self._sizes = np.array([len(some) for some in self._parts])
        self._stride = -(-rows * len(self._parts) // KEPT)
        self._nll: Tensor | None = None  # sums over rows
        self._kl: Tensor | float = 0.0
        self._model, self._ensemble = Grown(), Grown()
        self._rows = 0

    def add(self, ensemble: Predictive, y: Tensor | None) -> None:
        """Add B rows and their labels y, if there are any."""
        pooled, shares_of = ensemble.pooled(), self._shares(ensemble)
        step = max(1, AT_ONCE // max(1, ensemble.means()[:, 0].numel()))
        found = [ensemble.parts(shares_of(slice(at, at + step)), y) for at in range(0, len(self._parts), step)]
        self._kl = self._kl + torch.cat([pooled.kl(parts.pooled).sum(0) for parts in found])
        if y is not None:
            nll = torch.cat([parts.nll.sum(0) for parts in found if parts.nll is not None])
            self._nll = nll if self._nll is None else self._nll + nll
        kept = slice(-self._rows % self._stride, None, self._stride)
        several, summary = answering(ensemble), ensemble.summary()
        self._model.add(torch.cat([parts.model[kept].float() for parts in found], dim=1))
        self._ensemble.add(torch.stack([summary.model, summary.total], dim=1)[kept])
        self._answering = max(self._answering, ensemble.members if several is None else int(several.max()))
        self._rows += len(summary.model)

    def _shares(self, ensemble: Predictive) -> Callable[[slice], Tensor]:
        """A function that gives each member's share in a slice of the sub-ensembles.

        Shares are (S, M), or (B, S, M) if not all members answer every row.
        """
        weights = shares(ensemble.weights, ensemble.means())

        def of_all(some: slice) -> Tensor:
            chosen = weights.new_zeros(len(self._parts[some]), ensemble.members)
            for at, part in enumerate(map(list, self._parts[some])):
                chosen[at, part] = weights[part] / weights[part].sum()
            return chosen

        def of_each_row(some: slice) -> Tensor:
            turns = torch.tensor(self._turns[some])  # (S, P): members in the order in which they are taken
            there = weights[:, turns] > 0  # (B, S, P)
            taken = there & (there.cumsum(-1) <= torch.from_numpy(self._sizes[some])[:, None])
            given = weights.new_zeros(len(weights), len(turns), ensemble.members)
            given.scatter_(2, turns.expand(len(weights), -1, -1), torch.where(taken, weights[:, turns], 0.0))
            return given / given.sum(-1, keepdim=True)

        return of_all if weights.dim() == 1 else of_each_row

    def ladder(self) -> Ladder | None:
        """The ladder over all added rows, at least one; None if no row is answered by several members."""
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
        if not float(ensemble.mean()) > NOTHING * float(total.mean()):
            return None
        of_parts = [scaled_l1(one.astype(np.float64), ensemble) for one in theirs.T]
        return self._by_size(torch.tensor(of_parts, dtype=torch.float64))


def _turns(some: tuple[int, ...], pooled: tuple[int, ...], at: int) -> list[int]:
    """All members in the order in which a sub-ensemble takes them: first its own, then others by a seed."""
    others = [member for member in pooled if member not in some]
    return [*some, *(others[place] for place in permutation(len(others), "stand in", at))]


def drawn(members: tuple[int, ...], size: int, most: int) -> list[tuple[int, ...]]:
    """All choices of `size` members if there are at most `most`, else `most` different ones, drawn by a seed."""
    if comb(len(members), size) <= most:
        return list(combinations(members, size))
    rng, found = np.random.default_rng([SEED, size]), set[tuple[int, ...]]()
    while len(found) < most:
        found.add(tuple(sorted(rng.choice(members, size, replace=False).tolist())))
    return sorted(found)
