"""How many rows a graph is asked about at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ensemble_distill.errors import EdistillError

BUDGET = 2**25  # bytes of inputs and outputs of a batch: 32 MiB; what a network holds in between is some times as much
MOST = 1024  # rows: more are no faster

Shape = Sequence[int | str | None]  # of an input or an output of a graph; free sizes have names or none


def rows_at_once(ends: Sequence[tuple[Shape, int]], longest: int) -> int:
    """As many rows as the budget holds, 1 at least.

    Args:
        ends: the shape of each input and output, whose first size is that of the batch, and the bytes of a number.
        longest: what a free size is at most.
    """
    row = sum(size * math.prod(n if isinstance(n, int) else longest for n in shape[1:]) for shape, size in ends)
    return max(1, min(MOST, BUDGET // max(1, row)))


def refuse_batch_size(rows: int | None) -> None:
    """Raise EdistillError for a batch without rows."""
    if rows is not None and rows < 1:
        raise EdistillError(
            f"--batch-size is {rows}, and rows are asked for by one at least. Set it to 1 or more, or leave it out."
        )
