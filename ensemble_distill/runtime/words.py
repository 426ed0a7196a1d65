"""Durations, counts and sizes in words, and paths in commands."""

from __future__ import annotations

import shlex
from pathlib import Path

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def shell(path: str | Path) -> str:
    """A path as a part of a command to copy, in quotes if a shell would split or expand it."""
    return shlex.quote(str(path))


def duration(seconds: float) -> str:
    """A duration: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, noun: str, plural: str = "s") -> str:
    """A count with its noun: 1 epoch, 2 epochs; `plural` is the ending for any count but 1."""
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def megabytes(count: int) -> str:
    """A size in MB, such as 0.12 MB, for files that are compared with one another."""
    return f"{count / 1e6:,.2f} MB"


def bytes_told(count: int) -> str:
    """A size in the unit that fits: 1.2 GB, 340.0 MB, 0.5 kB."""
    size, unit = next((size, unit) for size, unit in UNITS if count >= size or unit == "kB")
    return f"{count / size:,.1f} {unit}"


def members_told(worth: float, beyond: bool) -> str:
    """A worth in members; `beyond` is whether it is better than the whole ensemble, whose size `worth` then is."""
    return f"more than {worth:.0f}" if beyond else f"{worth:.1f}"
