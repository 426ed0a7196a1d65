"""How far models differ on the same rows, and whether chance could explain it.

This is the paired bootstrap (Efron and Tibshirani 1993, chapter 16): rows are drawn with replacement, the same ones for
all models, and every figure is computed again on the drawn rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.tasks.figures import Figures

LEVEL = 0.95
MOST, FEWEST = 1000, 200  # draws
ROWS = 20  # rows; draws of fewer are too much alike to say anything about other rows
WORK = 1e9  # numbers to process over all draws, roughly: some ten seconds
SEED = 0

Rows = NDArray[np.int64]
Figured = Callable[[Rows], Figures]  # a model's figures on some answers; an answer may be drawn more than once


@dataclass(frozen=True)
class Difference:
    """The difference of a figure between two models.

    Attributes:
        value: the other model's figure minus the first's, on the actual rows.
        low, high: the interval that holds the difference in 95 % of the draws; None if there are too few rows.
        rounding: whether the two are the same student, so that a difference is rounding and means nothing, even if it
            is the same in every draw.
    """

    value: float
    low: float | None
    high: float | None
    rounding: bool = False

    @property
    def clear(self) -> bool:
        """Whether the rows distinguish the two models: the interval does not contain 0."""
        return not (self.rounding or self.low is None or self.high is None or self.low <= 0 <= self.high)

    def to_json(self) -> dict[str, float | bool | None]:
        return {"difference": self.value, "low": self.low, "high": self.high, "clear": self.clear}


def draws_for(numbers: int, rows: Rows) -> int:
    """The number of draws to make; 0 if there are fewer than `ROWS` rows.

    Args:
        numbers: how many numbers go into the figures of all models.
        rows: (A,), the row of each answer.
    """
    return 0 if len(np.unique(rows)) < ROWS else int(max(FEWEST, min(MOST, WORK / max(1, numbers))))


def differences(sides: Sequence[Sequence[Figured]], rows: Rows, draws: int) -> list[dict[str, Difference]]:
    """The differences of each side but the first from the first, by figure; without figures missing in some draw.

    Args:
        sides: the models of each side, which differ only in their seed and whose figures are averaged.
        rows: (A,), the row of each answer, ascending. Whole rows are drawn, since a row's positions belong together.
        draws: the number of draws; without any, there are no intervals.
    """
    whole = _averaged(sides, np.arange(len(rows)))
    drawn = [_averaged(sides, some) for some in _drawn(rows, draws)]
    found = []
    for at in range(1, len(sides)):
        names = [name for name in whole[at] if all(name in each[0] and name in each[at] for each in (whole, *drawn))]
        found.append({name: _difference(whole, drawn, at, name) for name in names})
    return found


def _difference(
    whole: Sequence[dict[str, float]], drawn: Sequence[Sequence[dict[str, float]]], at: int, name: str
) -> Difference:
    value, apart = whole[at][name] - whole[0][name], [each[at][name] - each[0][name] for each in drawn]
    if not apart:
        return Difference(value, None, None)
    low, high = np.quantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high))


def _averaged(sides: Sequence[Sequence[Figured]], some: Rows) -> list[dict[str, float]]:
    """Each side's figures, averaged over its seeds; without figures that some seed lacks."""
    found = []
    for models in sides:
        figures = [of(some) for of in models]
        names = [name for name in figures[0] if all(each.get(name) is not None for each in figures)]
        found.append({name: float(np.mean([each[name] for each in figures])) for name in names})
    return found


def _drawn(rows: Rows, draws: int) -> Iterator[Rows]:
    """For each draw, the answers of as many rows as there are, drawn with replacement."""
    random = np.random.default_rng(SEED)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    lengths = np.diff(starts, append=len(rows))
    for _ in range(draws):
        own = random.integers(len(starts), size=len(starts))
        if len(starts) == len(rows):
            yield own
        else:
            ends = np.cumsum(lengths[own])
            yield np.arange(ends[-1]) + np.repeat(starts[own] - ends + lengths[own], lengths[own])
