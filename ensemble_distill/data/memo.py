"""Keeps decoded or rendered rows of small data in memory, so that later epochs need not make them again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from threading import Lock
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.data.source import Array

LIMIT = 2**28  # bytes
BESIDE = 700  # bytes of a value besides its array: Python's objects for it and for its place
SLAB = 2**24  # bytes
NOTHING = np.empty(0, np.uint8)


class HasX(Protocol):
    """A dataclass that is mostly an array."""

    @property
    def x(self) -> Array: ...


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=HasX)


class _Place(NamedTuple):
    slab: NDArray[np.uint8]
    start: int
    stop: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Memo(Generic[Value]):
    """Values by key, at most `limit` bytes of them; data that looks larger as a whole is not kept at all.

    A partial memo of large data would cost memory in every loader process and rarely be hit. So the first value read
    decides, by its size times `count`. Threads may share a memo: if two miss at once, both read.

    The arrays lie in a few large slabs. Allocated one by one, among the short-lived tensors of training steps, they
    would fragment memory, and the process would grow by a step's tensors at every step.

    Args:
        count: the number of values in the data.
        limit: bytes of all kept values at most.
        beside: bytes of a value besides its array, which for millions of small values are most of the total.
    """

    def __init__(self, count: int, limit: int = LIMIT, beside: int = BESIDE) -> None:
        self.count, self.limit, self.beside = count, limit, beside
        self._kept: dict[Hashable, tuple[Value, _Place]] = {}
        self._room: int | None = None
        self._slab, self._used = NOTHING, 0
        self._writing = Lock()

    def get(self, key: Key, read: Callable[[Key], Value]) -> Value:
        """The value of a key: the kept one, otherwise `read(key)`. Its x is read-only."""
        kept = self._kept.get(key)
        if kept is not None:
            value, place = kept
            x = place.slab[place.start : place.stop].view(place.dtype).reshape(place.shape)
            x.flags.writeable = False
            return cast(Value, replace(cast(Any, value), x=x))
        value = read(key)
        value.x.flags.writeable = False
        size = value.x.nbytes + self.beside
        if self._room is None:
            self._room = self.limit if size * self.count <= self.limit else 0
        with self._writing:
            if size <= self._room and key not in self._kept:
                self._room -= size
                self._kept[key] = (replace(cast(Any, value), x=NOTHING), self._stored(value.x))
        return value

    def _stored(self, x: Array) -> _Place:
        aligned = -(-x.nbytes // 16) * 16  # so that the next array may be viewed as any dtype
        if self._used + aligned > len(self._slab):
            self._slab, self._used = np.empty(max(SLAB, aligned), np.uint8), 0
        slab, start = self._slab, self._used
        self._used += aligned
        slab[start : start + x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        return _Place(slab, start, start + x.nbytes, x.dtype, x.shape)

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[Memo[Value]], tuple[int, int, int]]:
        return Memo, (self.count, self.limit, self.beside)  # a copy in another process starts empty
