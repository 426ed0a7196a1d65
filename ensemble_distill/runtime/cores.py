"""How many processor cores there are for this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from ensemble_distill.runtime.control_groups import GROUPS, PROC, folders_of, said

THREADS = "OMP_NUM_THREADS"  # what torch reads when it is imported


def cores_here() -> int:
    """Those that this process may run on, and no more than its control groups give it the time of."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, limit() or allowed)


def limit(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Cores' worth of time that control groups give this process (`docker run --cpus 2`), at least one; None where they
    set no limit."""
    quotas = list(_quotas(proc, groups))
    return max(1, round(min(quotas))) if quotas else None


def threads_here() -> int:
    """What the user said, or as many as the cores that a limit leaves; 0 for a library's own choice."""
    said = os.environ.get(THREADS, "")
    return int(said) if said.isdecimal() else 0 if limit() is None else cores_here()


def keep_to_limit(environment: MutableMapping[str, str]) -> None:
    """Have torch, and what else reads that variable here and in child processes, start as many threads as there are
    cores for them, unless their user has said how many. By itself torch counts the machine's: 64 threads then wait for
    each other in the time of two."""
    if limit() is not None:
        environment.setdefault(THREADS, str(cores_here()))


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    for folder in folders_of("cpu", proc, groups):
        quota, period = (*said(folder / "cpu.max").split(), "", "")[:2]
        if not quota:  # version 1
            quota, period = (said(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)
