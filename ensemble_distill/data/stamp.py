"""Whether a file is still the one that was looked at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stamp(NamedTuple):
    """What a change of a file changes.

    Attributes:
        size: in bytes.
        changed: when its content was, in nanoseconds since 1970.
    """

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """That of a file; of one that is not there, of none."""
        try:
            found = path.stat()
        except OSError:
            return cls(-1, -1)
        return cls(found.st_size, found.st_mtime_ns)
