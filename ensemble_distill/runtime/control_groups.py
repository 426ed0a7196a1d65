"""The control groups of Linux that this process is in: containers and batch systems limit it by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def folders_of(controller: str, proc: Path = PROC, groups: Path = GROUPS) -> Iterator[Path]:
    """Where a controller's limits of this process stand ("memory", "cpu"): its own group, and those above it, which
    limit it as well. Of version 2 all controllers share a folder, of version 1 each has its own."""
    for line in said(proc / "self/cgroup").splitlines():
        _, controllers, own = (*line.split(":", 2), "", "")[:3]
        if not own or (controllers and controller not in controllers.split(",")):
            continue
        root = groups / controller if controllers else groups
        place = root / own.lstrip("/")
        yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(root))


def said(file: Path) -> str:
    """What a file of the system says; nothing where there is none."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
