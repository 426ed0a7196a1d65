"""Rows of an array that stays in its file: each is read at access, and none is kept."""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensemble_distill.data.kinds import as_part, taken
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.data.stamp import Stamp
from ensemble_distill.errors import EdistillError

PIECE = 2**24  # bytes that are read at once


class Place(NamedTuple):
    """Where an array lies.

    Attributes:
        path: the file.
        named: what the array is, for messages.
        start: the offset in bytes of its first value.
        dtype, shape: of the array, which is stored in C order.
    """

    path: Path
    named: str
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize


class Mapped:
    """Rows of an array as its file stores them.

    Args:
        place: where the array (N, ...) lies.
        stamp: the stamp that the file must have; None for its present one.

    Raises:
        EdistillError: the file has another stamp, is too short, or cannot be mapped.
    """

    def __init__(self, place: Place, stamp: Stamp | None = None) -> None:
        self.place = place
        self._stamp = stamp or Stamp.of(place.path)
        self._refuse_changed()
        try:
            with place.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._rows: Array = np.ndarray(place.shape, place.dtype, self._map, place.start)
        except (ValueError, TypeError, OSError) as error:
            raise EdistillError(f"{place.named} cannot be mapped into memory: {error}. Write it again.") from error

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> Array:
        """A copy of some rows. Raises EdistillError if the file has changed since it was opened."""
        self._refuse_changed()  # reading beyond the end of a truncated file would kill the process
        return np.array(self._rows[start:stop])

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """All rows in their order, in blocks, each with the number of its first row. Raises as `read` does."""
        size = max(1, PIECE // max(1, self._rows[:1].nbytes))
        for start in range(0, len(self), size):
            yield start, self.read(start, start + size)

    def checksum(self, start: int, stop: int) -> int:
        """CRC-32 of the file's bytes from `start` to `stop`."""
        found = 0
        for at in range(start, stop, PIECE):
            self._refuse_changed()
            found = zlib.crc32(self._map[at : min(at + PIECE, stop)], found)
        return found

    def __reduce__(self) -> tuple[type[Mapped], tuple[Place, Stamp]]:
        return Mapped, (self.place, self._stamp)  # each process maps the file itself

    def _refuse_changed(self) -> None:
        if Stamp.of(self.place.path) != self._stamp or self._stamp.size < self.place.stop:
            raise EdistillError(
                f"{self.place.named} changed while it was read. Run the command again when nothing writes to it."
            )


class MappedInputs:
    """Rows of an array in its file, in the form that items have.

    Args:
        mapped: (N, ...) as the user stores it.
        of_tokens: whether rows are token ids.
        part: whether the array is one of a row's several arrays.

    Attributes:
        kind: the kind of the rows.
        dtype, shape: of all rows as one array.

    Raises:
        EdistillError: as `taken` or `as_part` does, for any row.
    """

    def __init__(self, mapped: Mapped, of_tokens: bool, part: bool = False) -> None:
        self._mapped, self._of_tokens, self._part = mapped, of_tokens, part
        first, self.kind = self._taken(0, mapped.read(0, 1))
        self.dtype, self.shape = first.dtype, (len(mapped), *first.shape[1:])
        if self.kind != "pixels":  # any byte is a valid pixel, so only other kinds are checked
            for _ in self.blocks():
                pass

    def __len__(self) -> int:
        return len(self._mapped)

    def __getitem__(self, row: int) -> Array:
        if not 0 <= row < len(self):  # ends an iteration
            raise IndexError(row)
        x, _ = self._taken(row, self._mapped.read(row, row + 1))
        return np.asarray(x[0])

    def blocks(self) -> Iterator[Array]:
        """All rows in their order, in blocks."""
        for start, x in self._mapped.blocks():
            yield self._taken(start, x)[0]

    def _taken(self, start: int, x: Array) -> tuple[Array, Kind]:
        if self._part:
            return as_part(x, self._mapped.place.named, start)
        return taken(x, self._mapped.place.named, self._of_tokens, start)
