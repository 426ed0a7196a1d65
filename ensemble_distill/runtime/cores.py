"""How many processor cores this process can use."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from ensemble_distill.runtime.control_groups import GROUPS, PROC, folders_of, said

THREADS = "OMP_NUM_THREADS"  # torch reads it at import


def cores_here() -> int:
    """The number of cores this process may run on, capped by the CPU time of its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, limit() or allowed)


def limit(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Cores' worth of CPU time granted by control groups (`docker run --cpus 2`), at least 1; None without a limit."""
    quotas = list(_quotas(proc, groups))
    return max(1, round(min(quotas))) if quotas else None


def threads_here() -> int:
    """The user's `OMP_NUM_THREADS`, else the cores that a limit leaves; 0, a library's own choice, without either."""
    said = os.environ.get(THREADS, "")
    return int(said) if said.isdecimal() else 0 if limit() is None else cores_here()


def keep_to_limit(environment: MutableMapping[str, str]) -> None:
    """Under a CPU limit, set `OMP_NUM_THREADS` to the available cores unless the user has set it.

    torch, and whatever else reads the variable here or in child processes, counts the machine's cores by default: 64
    threads would then wait for each other in the CPU time of two.
    """
    if limit() is not None:
        environment.setdefault(THREADS, str(cores_here()))


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    for folder in folders_of("cpu", proc, groups):
        quota, period = (*said(folder / "cpu.max").split(), "", "")[:2]
        if not quota:  # cgroup version 1
            quota, period = (said(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)
