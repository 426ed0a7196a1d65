"""How much memory is still available: on the machine, to this process, and on a CUDA device."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_distill.runtime import files
from ensemble_distill.runtime.control_groups import GROUPS, PROC, folders_of, said

if TYPE_CHECKING:
    import torch

# a control group's files: its limits, its use, and the part of its use that caches files on disk
LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
USED = ("memory.current", "memory.usage_in_bytes")
RECLAIMED = ("total_inactive_file", "inactive_file")  # the first in version 1, with subgroups included


def available(device: torch.device) -> int:
    """Bytes available for new tensors on a CUDA device, or on the machine for any other device."""
    if device.type != "cuda":
        return on_machine()
    import torch

    free = int(torch.cuda.mem_get_info(device)[0])
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def on_machine(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Bytes still available to this process: on the machine, or less within its control groups or `ulimit -v`.

    Containers and batch systems set control groups. Where the system does not report what is free, the whole memory of
    the machine counts.
    """
    left = _fields(proc / "meminfo").get("MemAvailable")
    rooms = [files.memory() if left is None else left * 1024]
    rooms += itertools.chain.from_iterable(map(_of_group, folders_of("memory", proc, groups)))
    most = _address_space()
    if most is not None:
        rooms.append(most - _fields(proc / "self/status").get("VmSize", 0) * 1024)
    return max(0, min(rooms))


def _of_group(folder: Path) -> Iterator[int]:
    """The bytes a control group leaves, if it sets a limit."""
    limits, used = (list(map(int, filter(str.isdecimal, _values(folder, names)))) for names in (LIMITS, USED))
    if limits and used:
        held = _fields(folder / "memory.stat")
        yield min(limits) - used[0] + next((held[name] for name in RECLAIMED if name in held), 0)


def _values(folder: Path, names: Sequence[str]) -> list[str]:
    return [said(folder / name).strip() for name in names]


def _address_space() -> int | None:
    """The limit of `ulimit -v` in bytes; None without one, and on systems other than POSIX."""
    if os.name != "posix":
        return None
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY else most


def _fields(file: Path) -> dict[str, int]:
    """The numbers in a file by their names: lines of a name and a number, with or without a colon."""
    found = {}
    for line in said(file).splitlines():
        name, *rest = line.replace(":", " ").split()[:2] or [""]
        if rest and rest[0].isdecimal():
            found[name] = int(rest[0])
    return found
