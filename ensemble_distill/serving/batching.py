"""How many rows a graph gets per batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ensemble_distill.errors import EdistillError

BUDGET = 2**25  # bytes of a batch's inputs and outputs: 32 MiB; the activations of a network take several times as much
MOST = 1024  # rows, beyond which a batch is no faster

Shape = Sequence[int | str | None]  # of a graph's input or output; a free size is a name or None


def rows_at_once(ends: Sequence[tuple[Shape, int]], longest: int) -> int:
    """As many rows as fit the budget, at least 1.

    Args:
        ends: the shape of each input and output, batch first, and the bytes of each of its numbers.
        longest: the size assumed for a free dimension.
    """
    row = sum(size * math.prod(n if isinstance(n, int) else longest for n in shape[1:]) for shape, size in ends)
    return max(1, min(MOST, BUDGET // max(1, row)))


def refuse_batch_size(rows: int | None) -> None:
    """Raise EdistillError if the batch size is below 1."""
    if rows is not None and rows < 1:
        raise EdistillError(
            f"--batch-size is {rows}, and rows are asked for by one at least. Set it to 1 or more, or leave it out."
        )
