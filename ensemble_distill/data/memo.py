"""Keeping what was decoded or rendered of small data, so that later epochs need not do it again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from ensemble_distill.data.source import Array

LIMIT = 512 * 2**20  # bytes


class Kept(Protocol):
    """What a memo keeps: mostly an array."""

    @property
    def x(self) -> Array: ...


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Kept)


class Memo(Generic[Value]):
    """Values by key, at most `limit` bytes of them; a source that looks larger as a whole is not kept at all.

    A partial memo of a large source would cost memory in every loader process and be hit seldom, so the first
    value read decides by its size times their number. Threads may share a memo: two that miss at once both read.
    """

    def __init__(self, count: int, limit: int = LIMIT) -> None:
        self.count, self.limit = count, limit
        self._kept: dict[Hashable, Value] = {}
        self._room: int | None = None

    def get(self, key: Key, read: Callable[[Key], Value]) -> Value:
        """The value of that key: the kept one, else `read(key)`, whose x becomes read-only."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        value = read(key)
        value.x.flags.writeable = False
        size = value.x.nbytes
        if self._room is None:
            self._room = self.limit if size * self.count <= self.limit else 0
        if size <= self._room:
            self._kept[key] = value
            self._room -= size
        return value

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[Memo[Value]], tuple[int, int]]:
        return Memo, (self.count, self.limit)  # a process that gets a copy reads for itself
