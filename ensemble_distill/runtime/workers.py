"""How many loader processes bring rows where nobody says it: none, or as many as a short trial finds faster."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator
from contextlib import closing

from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.cores import cores_here
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.words import counted

LONG = 30.0  # seconds of work from which on a trial of about one second is worth it
SHARE = 0.2  # of rendering in all, below which the most that could be won is a fifth
GAIN = 1.15  # rows a second beside those of this process alone, below which more processes are not worth theirs
MOST = 8  # processes
SECONDS = 0.3  # of a trial of either, and as long for processes to start
A_BATCH = 0.06  # seconds of a batch in a trial


def offered(rendering: float, computing: float, rows: int) -> int:
    """The loader processes that are worth a trial, as many as keep up with the model; 0 where none are.

    Args:
        rendering, computing: seconds of a row in this process.
        rows: of the whole work.
    """
    cores = cores_here() // ranks.local().world
    if rows * (rendering + computing) < LONG or rendering < SHARE * (rendering + computing) or cores < 2:
        return 0
    if multiprocessing.get_context().get_start_method() != "fork":  # each would take seconds to import torch
        return 0
    return min(MOST, cores, 1 + int(rendering / max(computing, 1e-9)))


def at_once(rendering: float, computing: float, most: int) -> int:
    """Rows of a batch in a trial."""
    return max(1, min(most, int(A_BATCH / max(rendering + computing, 1e-9))))


def by_trial(what: str, processes: int, rate: Callable[[int], float], progress: Progress) -> int:
    """So many processes, or 0 where this one alone is about as fast; what was measured is told.

    Args:
        what: goes on, for the note.
        rate: rows a second with so many, for `SECONDS`; see `rate_of`.
    """
    if not processes:
        return 0
    beside = rate(processes)  # first: what this process reads in its own trial it keeps, and theirs would begin with
    alone = rate(0)
    chosen = processes if beside > GAIN * alone else 0
    progress.note(
        f"{what}: {counted(chosen, 'loader process', 'es')}, since in a trial {processes} brought {beside:,.0f} "
        f"rows/s, and none {alone:,.0f} (--workers)."
    )
    return chosen


def rate_of(batches: Generator[int]) -> float:
    """Rows a second of work that yields the rows of each batch when it is done, for `SECONDS` from the end of the first
    batch on: how long processes take to start is no matter of a long pass. 0 where not even the second one ends."""
    started, last, rows = None, 0.0, 0
    begun = time.monotonic()
    with closing(batches):  # which ends the processes
        for count in batches:
            last = time.monotonic()
            if started is None:
                started = last
            else:
                rows += count
            if last - started > SECONDS or last - begun > 2 * SECONDS:
                break
    return rows / (last - started) if started is not None and last > started else 0.0
