"""What a cache notes of the members that are asked, before the first answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ensemble_distill.cache.manifest import Drawn, Pushed

Key = TypeVar("Key")
Note = TypeVar("Note", Pushed, Drawn)


def fresh_notes(
    noted: Mapping[Key, Note], keys: Iterable[Key], now: Note, alike: Callable[[Note], bool]
) -> dict[Key, Note]:
    """The notes to write, by key.

    An existing note stays if it is alike and none of its members has gone, even if there are new members.

    Args:
        now: the note for the present members.
        alike: whether a note matches `now` in everything but its members.
    """

    def stays(note: Note | None) -> bool:
        return note is not None and alike(note) and set(note.members) <= set(now.members)

    return {key: now for key in keys if not stays(noted.get(key))}
