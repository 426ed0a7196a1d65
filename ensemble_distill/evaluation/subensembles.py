"""The best few members of an ensemble: the baseline that a practitioner tries before distilling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from ensemble_distill.predictive.pools import Mixtures, Pool
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.predictive.weighted import shares
from ensemble_distill.runtime.grown import Grown

LIMIT = 1e9  # numbers to add up in an exhaustive search: about 10 s, enough for triples of 50 members on 50,000 rows


class SubEnsembles:
    """Collects the members' predictions for labeled rows, and finds the sub-ensemble with the lowest NLL on them.

    A sub-ensemble pools as the ensemble does, with the weights of its members. Choose on validation rows: the NLL of
    the best of many is too optimistic to report.
    """

    def __init__(self) -> None:
        self._parts, self._labels = Grown(), Grown()
        self._shares = torch.empty(0)
        self._pool: type[Pool] = Mixtures

    @property
    def rows(self) -> int:
        """The number of rows added so far."""
        return len(self._labels)

    def add(self, members: Predictive, y: Tensor) -> None:
        """Add B rows that all members answer, and their labels y, (B,) or (B, K)."""
        self._pool = members.pool
        self._shares = shares(members.weights, members.nll(y))
        self._parts.add(self._pool.parts(members, y, self._shares))
        self._labels.add(y)

    def best(self, size: int) -> tuple[int, ...] | None:
        """The positions of the best `size` members (1 or more), ascending; None unless the ensemble has more than that.

        Every choice of that size is tried or, if there are too many, every choice that adds one member to the best
        choice of one fewer. Members of weight 0 are not part of the ensemble.
        """
        everyone = torch.nonzero(self._shares).flatten().tolist()
        if len(everyone) <= size:
            return None
        parts = torch.from_numpy(self._parts.all()).transpose(0, 1).contiguous()  # (M, N, W)
        y = torch.from_numpy(self._labels.all())
        nobody = torch.full_like(parts[0], self._pool.NOBODY)
        tried = []
        for some, others in self._choices(everyone, size, parts[0].numel()):
            joined = reduce(self._pool.join, parts[list(some)], nobody)
            share = self._shares[list(some)].sum() + self._shares[others]
            nll = self._pool.nll(self._pool.join(joined, parts[others]), share, y)
            tried.append((float(nll.min()), (*some, others[int(nll.argmin())])))
        return tuple(sorted(min(tried)[1]))

    def _choices(self, everyone: list[int], size: int, numbers: int) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """(some, others): a choice is some members plus one of the others. `numbers` is the size of a member's part."""
        if size == 1 or comb(len(everyone), size) * numbers <= LIMIT:
            for some in combinations(everyone, size - 1):
                others = [m for m in everyone if not some or m > some[-1]]
                if others:
                    yield some, others
        else:
            some = self.best(size - 1) or ()
            yield some, [m for m in everyone if m not in some]
