"""How far apart models are on the same rows, and how far chance alone could have put them.

The paired bootstrap (Efron and Tibshirani 1993, chapter 16): rows are drawn anew, with replacement, the same ones for
all models, and every figure is made again of what was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.tasks.figures import Figures

LEVEL = 0.95
MOST, FEWEST = 1000, 200  # draws
ROWS = 20  # fewer draw themselves over and over, one of them always: they say nothing of others
WORK = 1e9  # numbers to go through for all draws, about: some ten seconds
SEED = 0

Rows = NDArray[np.int64]
Figured = Callable[[Rows], Figures]  # a model's figures on some answers; an answer may be drawn more than once


@dataclass(frozen=True)
class Difference:
    """Of a figure between two models.

    Attributes:
        value: the other's less the first's, on the rows as they are.
        low, high: where 95 % of the draws have it; None where too few rows are there to draw from.
        rounding: whether the two are one student, so that whatever differs is rounding. It may be the same on every
            draw, and says nothing.
    """

    value: float
    low: float | None
    high: float | None
    rounding: bool = False

    @property
    def clear(self) -> bool:
        """Whether the rows tell the two apart: 0 lies outside."""
        return not (self.rounding or self.low is None or self.high is None or self.low <= 0 <= self.high)

    def to_json(self) -> dict[str, float | bool | None]:
        return {"difference": self.value, "low": self.low, "high": self.high, "clear": self.clear}


def draws_for(numbers: int, rows: Rows) -> int:
    """How many draws are made of rows that hold so many numbers, of all models together; none of fewer than 20.

    Args:
        rows: (A,) the row that each answer is of.
    """
    return 0 if len(np.unique(rows)) < ROWS else int(max(FEWEST, min(MOST, WORK / max(1, numbers))))


def differences(sides: Sequence[Sequence[Figured]], rows: Rows, draws: int) -> list[dict[str, Difference]]:
    """Of each side but the first to the first, by figure; without those that do not exist on every draw.

    Args:
        sides: models that differ in their seed alone stand together, and their figures are averaged.
        rows: (A,) the row that each answer is of, ascending. Rows are drawn, whose positions belong together.
        draws: how many; without any there are no intervals.
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
    """Of each side its seeds' mean figures; without those that a seed has not."""
    found = []
    for models in sides:
        figures = [of(some) for of in models]
        names = [name for name in figures[0] if all(each.get(name) is not None for each in figures)]
        found.append({name: float(np.mean([each[name] for each in figures])) for name in names})
    return found


def _drawn(rows: Rows, draws: int) -> Iterator[Rows]:
    """Answers of as many rows as there are, drawn with replacement."""
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
