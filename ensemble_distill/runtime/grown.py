"""Arrays that grow batch by batch.

Keeping each batch's part separately, between its temporary arrays, fragments the memory with holes that no later batch
fits into: with a thousand classes, an evaluation held a gigabyte for every thousand rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FIRST = 1024  # rows of the first allocation; then the capacity doubles


class Grown:
    """An array of all rows, (N, …)."""

    def __init__(self) -> None:
        self._room: NDArray[Any] = np.empty(0)
        self._rows: int | None = None  # None before the first part

    def __len__(self) -> int:
        return self._rows or 0

    def add(self, part: ArrayLike) -> None:
        """Append a copy of B rows, (B, …)."""
        more = np.asarray(part)
        rows, dtype = len(self), more.dtype if self._rows is None else np.result_type(self._room, more)
        wanted = rows + len(more)
        if self._rows is None or wanted > len(self._room) or dtype != self._room.dtype:
            room = np.empty((max(FIRST, wanted, 2 * rows), *more.shape[1:]), dtype)
            if rows:
                room[:rows] = self._room[:rows]
            self._room = room
        self._room[rows:wanted] = more
        self._rows = wanted

    def all(self) -> NDArray[Any]:
        """A view of the rows so far; of shape (0,) before the first part."""
        return self._room[: len(self)]


class GrownValues:
    """Named arrays of all rows; every batch has the same names."""

    def __init__(self) -> None:
        self._each: dict[str, Grown] = {}

    def add(self, values: Mapping[str, ArrayLike]) -> None:
        """Append a copy of B rows to each array."""
        for name, part in values.items():
            self._each.setdefault(name, Grown()).add(part)

    def all(self) -> dict[str, NDArray[Any]]:
        return {name: grown.all() for name, grown in self._each.items()}
