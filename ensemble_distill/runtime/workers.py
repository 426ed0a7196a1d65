"""How many loader processes to use if the user does not say: none, or as many as a short trial finds faster."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator
from contextlib import closing

from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.cores import cores_here
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.words import counted

LONG = 30.0  # seconds of work that make a trial of about one second worthwhile
SHARE = 0.2  # of the time spent rendering, below which at most a fifth could be gained
GAIN = 1.15  # speedup over this process alone, below which more processes are not worth their cost
MOST = 8  # processes
SECONDS = 0.3  # length of each of two trials, and about the time that processes need to start
A_BATCH = 0.06  # seconds per batch of a trial


def offered(rendering: float, computing: float, rows: int) -> int:
    """The number of loader processes worth a trial, enough to keep up with the model; 0 if none are.

    Args:
        rendering, computing: seconds per row in this process.
        rows: of the whole work.
    """
    cores = cores_here() // ranks.local().world
    if rows * (rendering + computing) < LONG or rendering < SHARE * (rendering + computing) or cores < 2:
        return 0
    if multiprocessing.get_context().get_start_method() != "fork":  # each process would take seconds to import torch
        return 0
    return min(MOST, cores, 1 + int(rendering / max(computing, 1e-9)))


def at_once(rendering: float, computing: float, most: int) -> int:
    """Rows per batch of a trial."""
    return max(1, min(most, int(A_BATCH / max(rendering + computing, 1e-9))))


def by_trial(what: str, processes: int, rate: Callable[[int], float], progress: Progress) -> int:
    """`processes` if they are clearly faster than this process alone, else 0; a note reports the measurement.

    Args:
        what: the work, for the note.
        rate: rows per second with a number of processes, measured for `SECONDS`; see `rate_of`.
    """
    if not processes:
        return 0
    beside = rate(processes)  # first: child processes would inherit what a trial here has read
    alone = rate(0)
    chosen = processes if beside > GAIN * alone else 0
    progress.note(
        f"{what}: {counted(chosen, 'loader process', 'es')}, since in a trial {processes} brought {beside:,.0f} "
        f"rows/s, and none {alone:,.0f} (--workers)."
    )
    return chosen


def rate_of(batches: Generator[int]) -> float:
    """Rows per second of work that yields the size of each finished batch, measured for `SECONDS` after the first
    batch.

    The time that processes take to start does not count, as it does not matter in a long pass. The rate is 0 if the
    second batch does not finish.
    """
    started, last, rows = None, 0.0, 0
    begun = time.monotonic()
    with closing(batches):  # closing it ends the processes
        for count in batches:
            last = time.monotonic()
            if started is None:
                started = last
            else:
                rows += count
            if last - started > SECONDS or last - begun > 2 * SECONDS:
                break
    return rows / (last - started) if started is not None and last > started else 0.0
