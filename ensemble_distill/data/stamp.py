"""Tells whether a file has changed since it was looked at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stamp(NamedTuple):
    """What differs once a file has changed.

    Attributes:
        size: in bytes.
        changed: when the content last changed, in nanoseconds since 1970.
    """

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file; (−1, −1) if it cannot be looked at."""
        try:
            found = path.stat()
        except OSError:
            return cls(-1, -1)
        return cls(found.st_size, found.st_mtime_ns)
