"""The Linux control groups of this process, through which containers and batch systems limit it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def folders_of(controller: str, proc: Path = PROC, groups: Path = GROUPS) -> Iterator[Path]:
    """The folders that hold a controller's limits ("memory", "cpu") for this process.

    They are the process's own group and all groups above it, whose limits hold as well. In cgroup version 2 all
    controllers share a folder; in version 1 each has its own.
    """
    for line in said(proc / "self/cgroup").splitlines():
        _, controllers, own = (*line.split(":", 2), "", "")[:3]
        if not own or (controllers and controller not in controllers.split(",")):
            continue
        root = groups / controller if controllers else groups
        place = root / own.lstrip("/")
        yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(root))


def said(file: Path) -> str:
    """The text of a system file; "" if it cannot be read."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
