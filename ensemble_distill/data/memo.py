"""Keeping the decoded rows of a small source, so that later epochs do not decode them again."""

from __future__ import annotations

from collections.abc import Callable

from ensemble_distill.data.source import Item

LIMIT = 512 * 2**20  # bytes


class Memo:
    """Items by row, at most `limit` bytes of them; a source that looks larger as a whole is not kept at all.

    A partial memo of a large source would cost memory in every loader process and be hit seldom, so the first
    item read decides by its size times the rows. Threads may share a memo: two that miss at once both decode.
    """

    def __init__(self, rows: int, limit: int = LIMIT) -> None:
        self.rows, self.limit = rows, limit
        self._kept: dict[int, Item] = {}
        self._room: int | None = None

    def get(self, row: int, read: Callable[[int], Item]) -> Item:
        """The item of that row: the kept one, else `read(row)`, whose x becomes read-only."""
        kept = self._kept.get(row)
        if kept is not None:
            return kept
        item = read(row)
        item.x.flags.writeable = False
        size = item.x.nbytes
        if self._room is None:
            self._room = self.limit if size * self.rows <= self.limit else 0
        if size <= self._room:
            self._kept[row] = item
            self._room -= size
        return item

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[Memo], tuple[int, int]]:
        return Memo, (self.rows, self.limit)  # a process that gets a copy decodes for itself
