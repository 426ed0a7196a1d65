"""Whether what a network says of a row follows from that row alone: asked again, in another order, and alone.

A few rows are enough: dropout and batch statistics spare none.
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

ROWS = 8  # that are asked about, three times, and one alone
# Shares of the unit by which an answer may differ. The same batch goes through the same kernels, and only a device that
# adds up in any order rounds it otherwise. Batches of another shape go through others, and layers in bfloat16 round to
# less than three digits each. Dropout and batch statistics change answers by tenths.
AGAIN, ELSEWHERE = 1e-3, 0.05

Answers = NDArray[np.float64]
How = Literal["again", "in another order", "alone", "later"]


@dataclass(frozen=True)
class Scale:
    """How answers (B, W) are compared; both one number, or (W,).

    Attributes:
        unit: how far apart answers are that differ.
        rounding: by how much they may differ whatever the unit.
    """

    unit: NDArray[np.float64] | float
    rounding: NDArray[np.float64] | float


@dataclass(frozen=True)
class Change:
    """One number of an answer that is not what it was.

    Attributes:
        how: what was different when the row was asked the second time.
        row, output: which number, counted in the rows that were asked about and in their answers.
        first, other: the number then, and afterwards; None where there was no second answer, as `failure` says.
    """

    how: How
    row: int
    output: int
    first: float
    other: float | None
    failure: str = ""

    @property
    def random(self) -> bool:
        """Whether it is not even a function of its batch."""
        return self.how == "again"

    @property
    def told(self) -> str:
        """The second answer: "asked again, 0.2", or "asked about the row alone, it fails (why)"."""
        other = f"it fails ({self.failure.rstrip('.')})" if self.other is None else f"{self.other:.4g}"
        return f"asked again, {other}" if self.random else f"asked about the row {self.how}, {other}"


def some_rows(total: int) -> list[int]:
    """Evenly spread rows of a split to ask about; all of a small one."""
    return spread(total, ROWS)


def find_change(
    ask: Callable[[Tensor], Answers], x: Tensor, scale: Callable[[Answers], Scale], first: Answers | None = None
) -> Change | None:
    """Ask about rows x (B, …) in several ways; None where the answers (B, W) are the same but for rounding.

    The caller's random numbers stay untouched. Of a single row it is only told whether a second answer is the first.

    Args:
        first: what `ask` has said of x already.

    Raises:
        EdistillError: what `ask` raises on all rows together.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        first = ask(x) if first is None else first
        if not np.isfinite(first).all():
            return None  # for others to tell
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
    """Compare answers (B, W) with those of a pass that went over other rows in between, in batches of another size."""
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
