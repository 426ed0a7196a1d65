"""What a cache notes of who was asked, before the first answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ensemble_distill.cache.manifest import Drawn, Pushed

Key = TypeVar("Key")
Note = TypeVar("Note", Pushed, Drawn)


def fresh_notes(
    noted: Mapping[Key, Note], keys: Iterable[Key], now: Note, alike: Callable[[Note], bool]
) -> dict[Key, Note]:
    """What to note, by key. What is noted stays, whoever has come since, if it is alike and nobody of it has gone.

    Args:
        now: of those who are there.
        alike: whether a note goes with `now` in all but its members.
    """

    def stays(note: Note | None) -> bool:
        return note is not None and alike(note) and set(note.members) <= set(now.members)

    return {key: now for key in keys if not stays(noted.get(key))}
