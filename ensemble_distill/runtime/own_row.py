"""Whether a network's answer for a row depends on that row alone: ask again, in another order, and for the row alone.

A few rows are enough, since dropout and batch statistics affect every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.spread import spread

ROWS = 8  # rows that are asked about, three times together and one of them alone
# Tolerances as shares of `Scale.unit`. The same batch runs the same kernels, so only a device that adds up in varying
# order rounds differently. Batches of another shape run other kernels, and each layer in bfloat16 rounds to less than
# three digits. Dropout and batch statistics change answers by tenths.
AGAIN, ELSEWHERE = 1e-3, 0.05

Answers = NDArray[np.float64]
How = Literal["again", "in another order", "alone", "later"]


@dataclass(frozen=True)
class Scale:
    """How answers (B, W) are compared; both values are one number or (W,).

    Attributes:
        unit: the distance between clearly different answers.
        rounding: an absolute tolerance, whatever the unit.
    """

    unit: NDArray[np.float64] | float
    rounding: NDArray[np.float64] | float


@dataclass(frozen=True)
class Change:
    """One number of an answer that changed.

    Attributes:
        how: what was different the second time.
        row, output: the position of the number: the row among those asked about, and the place in its answer.
        first, other: the number before and after; `other` is None where there is no second answer, and `failure` says
            why.
    """

    how: How
    row: int
    output: int
    first: float
    other: float | None
    failure: str = ""

    @property
    def random(self) -> bool:
        """Whether the answer is not even a function of its batch."""
        return self.how == "again"

    @property
    def told(self) -> str:
        """The second answer in words: "asked again, 0.2", or "asked about the row alone, it fails (why)"."""
        other = f"it fails ({self.failure.rstrip('.')})" if self.other is None else f"{self.other:.4g}"
        return f"asked again, {other}" if self.random else f"asked about the row {self.how}, {other}"


def some_rows(total: int) -> list[int]:
    """Evenly spaced rows of a split to ask about; all rows of a small split."""
    return spread(total, ROWS)


def find_change(
    ask: Callable[[Tensor], Answers], x: Tensor, scale: Callable[[Answers], Scale], first: Answers | None = None
) -> Change | None:
    """Ask about rows x (B, …) in several ways; None if the answers (B, W) agree up to rounding.

    The caller's random state is preserved. A single row is only asked again.

    Args:
        first: the answers of `ask` for x, if they are known.

    Raises:
        EdistillError: whatever `ask` raises for all rows together the first time, unless `first` is given.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        first = ask(x) if first is None else first
        if not np.isfinite(first).all():
            return None  # reported elsewhere
        return _first_change(ask, x, first, scale(first))


def _first_change(ask: Callable[[Tensor], Answers], x: Tensor, first: Answers, scale: Scale) -> Change | None:
    every = list(range(len(x)))
    trials: list[tuple[How, list[int], float]] = [("again", every, AGAIN)]
    if len(x) > 1:
        trials += [("in another order", every[::-1], ELSEWHERE), ("alone", every[:1], ELSEWHERE)]
    for how, at, share in trials:
        try:
            other = ask(x[at])
        except EdistillError as error:
            return Change(how, at[0], 0, float(first[at[0], 0]), None, str(error))
        change = _difference(how, at, first[at], other, share * scale.unit + scale.rounding)
        if change is not None:
            return change
    return None


def find_later_change(first: Answers, later: Answers, scale: Scale) -> Change | None:
    """Compare answers (B, W) with those of a later pass over other rows too, in batches of another size."""
    return _difference("later", range(len(first)), first, later, ELSEWHERE * scale.unit + scale.rounding)


def _difference(how: How, at: Sequence[int], first: Answers, other: Answers, allowed: Any) -> Change | None:
    if other.shape != first.shape:
        return Change(how, at[0], 0, float(first[0, 0]), None, f"It returns {other.shape}, and not {first.shape}.")
    beyond = np.abs(other - first) - np.broadcast_to(allowed, first.shape)
    beyond[~np.isfinite(other)] = np.inf
    row, output = np.unravel_index(int(beyond.argmax()), beyond.shape)
    if beyond[row, output] <= 0:
        return None
    return Change(how, at[int(row)], int(output), float(first[row, output]), float(other[row, output]))
