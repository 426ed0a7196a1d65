"""Timing alternating runs, so that a drifting machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def medians(repeats: int, *runs: Callable[[], float], warm: int = 1) -> list[float]:
    """The median of each run, which returns its own seconds, over `repeats` rounds after `warm` rounds of warm-up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(warm + repeats):
        for run, taken in zip(runs, seconds, strict=True):
            found = run()
            if repeat >= warm:
                taken.append(found)
    return [statistics.median(taken) for taken in seconds]


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
