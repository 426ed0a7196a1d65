"""Which rows, in which view, at each step; and which steps belong to which stage.

The order is a pure function of (seed, step), so training resumes anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.method import Stage
from ensemble_distill.runtime.keys import permutation
from ensemble_distill.runtime.ranks import ALONE, Rank
from ensemble_distill.runtime.spread import spread

Index = tuple[int, int]  # a row and a view


@lru_cache(maxsize=2)
def _shuffled(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return permutation(rows, "order", seed, epoch)


@dataclass(frozen=True)
class Order:
    """Rows shuffled anew in each epoch; the last incomplete batch of an epoch is dropped.

    In epoch e, row i is seen in view (e + h(i)) mod V, with h a hash: each row goes through all its views in V epochs,
    and each epoch mixes them.

    Attributes:
        rows: number of rows.
        batch_size: rows per step, over all ranks.
        at: numbers of these rows, (rows,); None if they are 0 to `rows` − 1.
    """

    rows: int
    views: int
    batch_size: int
    seed: int
    rank: Rank = ALONE
    at: NDArray[np.int64] | None = field(default=None, compare=False)

    def numbered(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row numbers at places from 0 to `rows` − 1."""
        return places if self.at is None else self.at[places]

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.rows // self.batch_size)

    def batch(self, step: int) -> list[Index]:
        """The rows and views of a step on this rank."""
        epoch, at = divmod(step, self.steps_per_epoch)
        start = at * self.batch_size
        rows = self.numbered(_shuffled(self.rows, self.seed, epoch)[start : start + self.batch_size])
        rows = rows[self.rank.part(len(rows))]
        return list(zip(rows.tolist(), self.views_of(rows, epoch).tolist(), strict=True))

    def views_of(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The view in which each of the rows is seen in an epoch."""
        # Fibonacci hashing: any stretch of rows is spread evenly over the views
        hashed = (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        views: NDArray[np.int64] = (hashed.astype(np.int64) + epoch) % self.views
        return views


class Every(Sampler[list[Index]]):
    """Each row in each view once, in batches; beyond `limit`, in fewer views, and then only evenly spaced rows.

    The order is not shuffled, so that solves from these rows give the same result in every run.
    """

    def __init__(self, order: Order, limit: int) -> None:
        self.order = order
        self.epochs = min(order.views, max(1, limit // order.rows))
        count = min(order.rows, limit)
        self.rows = order.numbered(np.array(spread(order.rows, count), np.int64))

    @property
    def count(self) -> int:
        return self.epochs * len(self.rows)

    def __iter__(self) -> Iterator[list[Index]]:
        size = self.order.batch_size
        for epoch in range(self.epochs):
            views = self.order.views_of(self.rows, epoch)
            every = list(zip(self.rows.tolist(), views.tolist(), strict=True))
            yield from (every[start : start + size] for start in range(0, len(every), size))


class Steps(Sampler[list[Index]]):
    """The batches of steps `start` to `stop` − 1, for a DataLoader that prefetches across epochs."""

    def __init__(self, order: Order, start: int, stop: int) -> None:
        self.order, self.start, self.stop = order, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Index]]:
        return (self.order.batch(step) for step in range(self.start, self.stop))


def afforded(stages: Sequence[Stage], steps: int) -> tuple[Stage, ...]:
    """The stages, without the optional ones if there are fewer steps than stages.

    A dropped stage gives its share to the next one.
    """
    if not 0 < steps < len(stages):
        return tuple(stages)
    kept: list[Stage] = []
    share = 0.0
    for stage in stages:
        share += stage.share
        if not stage.optional:
            kept.append(replace(stage, share=share))
            share = 0.0
    return tuple(kept)


def boundaries(stages: Sequence[Stage], steps: int) -> list[int]:
    """The step at which each stage ends; the last one is `steps`.

    Raises:
        EdistillError: there are fewer steps than stages; or there are none, and the first stage is not the only one or
            has no solve.
    """
    if steps == 0:
        if len(stages) > 1 or stages[0].fit is None:
            raise EdistillError(
                f"train.epochs is 0, and the method begins with stage {stages[0].name}, which solves for nothing. "
                "Raise train.epochs. None is enough for hydra that starts from members, or whose hinton-share is 0."
            )
        return [0]
    if steps < len(stages):
        names = ", ".join(stage.name for stage in stages)
        raise EdistillError(
            f"Training has {steps} steps, and the method has {len(stages)} stages ({names}). Raise train.epochs, or "
            "lower train.batch-size."
        )
    ends: list[int] = []
    share = 0.0
    for index, stage in enumerate(stages):
        share += stage.share
        earliest = (ends[-1] if ends else 0) + 1
        latest = steps - (len(stages) - 1 - index)
        ends.append(min(max(round(share * steps), earliest), latest))
    ends[-1] = steps
    return ends
