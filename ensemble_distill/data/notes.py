"""Notes on the headers of tar shards, kept beside the cache so that the next command need not read them all again.

A note only saves time. It is ignored if anything about it is odd, or if the file system reports any change of a shard
since it was read.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_distill.data.shard_headers import Headers
from ensemble_distill.data.source import Source
from ensemble_distill.data.tar_index import Placed
from ensemble_distill.data.wrapping import innermost
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import read_whole, write_whole
from ensemble_distill.runtime.jsons import parse_json

NAME = "notes"  # the folder in a cache
FORMAT = 2  # 1 could call rows unlabeled whose labels it had missed
SETTLED = 2_000_000_000  # nanoseconds; by then, a further change of a file gets another time
TEXTS = (str, int, float, bool)

State = list[int]


@dataclass(frozen=True)
class Note:
    """What the headers of some shards said.

    Attributes:
        path: the note's file; None if it is not kept.
        asked: what was read: the shards and the columns.
        states: the state of each shard before it was read; see `_state`.
        headers: what the shards' headers said.
        fresh: whether the note is not on disk yet.
    """

    path: Path | None
    asked: Any
    states: list[State]
    headers: Headers
    fresh: bool

    @classmethod
    def taken(cls, folder: Path | None, shards: Sequence[Path], column: str | None, labels: Sequence[str]) -> Note:
        """The note kept in a folder, otherwise a fresh one. Raises EdistillError as `Headers.of` does."""
        asked = [[str(shard.absolute()) for shard in shards], column, list(labels)]
        path = None if folder is None else folder / f"{_digest(json.dumps(asked).encode()).decode()[:16]}.json"
        states = [_state(shard) for shard in shards]  # before they are read
        try:
            if path is not None:
                return cls(path, asked, states, _read(path, asked, states), fresh=False)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return cls(path, asked, states, Headers.of(shards, column, labels), fresh=True)

    def keep(self, within: Path) -> None:
        """Write the note if it is fresh and no shard has changed within the last two seconds.

        A disk that cannot hold it is no error.

        Args:
            within: the cache, which the note must lie in.
        """
        if (
            self.path is None
            or not self.fresh
            or time.time_ns() - max(max(state[2:]) for state in self.states) < SETTLED
        ):
            return
        headers = self.headers
        record = {
            "format": FORMAT,
            "asked": self.asked,
            "states": self.states,
            "at": headers.at,
            "names": [one.name for one in headers.placed],
            "offsets": [one.offset for one in headers.placed],
            "sizes": [one.size for one in headers.placed],
            "texts": headers.texts,
            "labeled": headers.labeled,
            "others": sorted(headers.others),
        }
        content = json.dumps(record).encode()
        try:
            write_whole(self.path, b"%s\n%s" % (_digest(content), content), within=within)
        except (OSError, EdistillError):
            return


def keep_notes(sources: Iterable[Source], cache: Path) -> None:
    """Keep the notes of some sources, or of the sources that they wrap."""
    found: dict[Path, Note] = {}
    for source in sources:
        if isinstance(note := getattr(innermost(source), "note", None), Note) and note.path is not None:
            found[note.path] = note
    for note in found.values():
        note.keep(cache)


def _state(path: Path) -> State:
    """A file's size, inode, and times of the last change of content and of metadata, in nanoseconds since 1970."""
    try:
        found = path.stat()
    except OSError:  # reported where the file is read
        return [0, 0, 0, 0]
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _read(path: Path, asked: Any, states: list[State]) -> Headers:
    """The headers in a note.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is no note, it is damaged, or it is about other files.
    """
    digest, _, content = read_whole(path).partition(b"\n")
    if digest != _digest(content):
        raise ValueError("it is not whole")
    record = parse_json(content)
    if (record["format"], record["asked"], record["states"]) != (FORMAT, asked, states):
        raise ValueError("it is of other files")
    placed = [Placed(*one) for one in zip(record["names"], record["offsets"], record["sizes"], strict=True)]
    headers = Headers(record["at"], placed, record["texts"], record["labeled"], set(record["others"]))
    _refuse_odd(headers, asked[2], [state[0] for state in states])
    return headers


def _refuse_odd(headers: Headers, labels: Sequence[str], sizes: Sequence[int]) -> None:
    """Raise ValueError or TypeError for headers that no shards can have."""
    rows, texts = len(headers.placed), headers.texts
    if len(headers.at) != rows or list(texts) != list(labels) or not isinstance(headers.labeled, bool):
        raise ValueError("its columns are others")
    for number, one in zip(headers.at, headers.placed, strict=True):
        whole = all(type(value) is int and value >= 0 for value in (number, one.offset, one.size))
        if not whole or type(one.name) is not str or number >= len(sizes) or one.offset + one.size > sizes[number]:
            raise ValueError(f"{one} lies in no shard")
    for column in texts.values():
        if len(column) != (rows if headers.labeled else 0) or any(type(text) not in TEXTS for text in column):
            raise ValueError("its labels are none")
