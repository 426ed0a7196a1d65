"""The processes that torchrun started, as one job: they meet, the loss of one ends all, and one of them reports a
failure.

Once a second each process writes a sign of life to the job's store, and checks there the next process's sign and
whether any process has failed. So the loss of a process or its machine ends the others after `Job.patience` seconds,
while they wait for one that takes long, as the first does where it solves, validates or writes for all.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.ranks import Rank

BEAT = 1.0  # seconds between two signs of life
PATIENCE = 120.0  # seconds without a sign until a process counts as lost
MEETING = 300.0  # seconds in which all processes have to come
LONGEST = timedelta(days=30)  # timeout of a collective: the job itself ends a wait for a lost process
STATUS = 2  # exit status of a process that ends because another one failed or was lost

_open: Job | None = None
_meetings = 0  # held by this process so far


class LostError(EdistillError):
    """Another process of the job is gone."""


class EndedError(EdistillError):
    """Another process of the job failed, and reports why."""


class Job:
    """What one process knows of the others.

    Attributes:
        patience: seconds without a sign from another process until it counts as lost.
    """

    def __init__(self, rank: Rank, tell: Callable[[str], None]) -> None:
        self.rank, self.patience, self._tell = rank, PATIENCE, tell
        self._over = threading.Event()
        self._failing = False  # this process has a failure to report, and ends on its own
        self._failed = False  # another process has failed
        self._heard = time.monotonic()  # when the store last answered
        self._seen = self._heard + MEETING - PATIENCE  # when the next process last gave a sign
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._beat, self._guard)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop watching: the job is over."""
        self._over.set()
        for thread in self._threads:
            thread.join(5 * BEAT)

    def told(self, error: BaseException) -> BaseException | None:
        """The error that this process has to report; None if another process reports, and this one ends silently.

        An error that follows from the loss of a process is reported as a `LostError`.
        """
        self._failing = True
        stopped = isinstance(error, KeyboardInterrupt)  # all processes get it, even after one has failed
        own = isinstance(error, EdistillError) and error.__cause__ is None
        if not stopped and not own:  # it may be a consequence of another process's end
            error = self._found_lost() or error
        if not (stopped and self.rank.index) and not self._failed and self._is_first_to_fail():
            return error
        time.sleep(2 * BEAT)  # torchrun ends all processes as soon as one ends, and another is about to report
        return None

    def _found_lost(self) -> LostError | None:
        """A `LostError` if the next process is lost, after waiting a few beats; None otherwise."""
        until = time.monotonic() + 6 * BEAT
        while time.monotonic() < until and not self._failed:
            if time.monotonic() - self._seen > 4 * BEAT:
                return self._lost()
            time.sleep(BEAT / 4)
        return None

    def _is_first_to_fail(self) -> bool:
        try:
            return bool(_client().add("failed", 1) == 1)
        except Exception:  # the store is gone, so no other process reports either
            return True

    def _lost(self) -> LostError:
        index = (self.rank.index + 1) % self.rank.world
        return LostError(
            f"Process {index} of {self.rank.world} has stopped responding: it was killed, or its machine cannot be "
            "reached. What was finished is kept; run the same command to continue, with any number of processes."
        )

    def _beat(self) -> None:
        """Give signs of life, and watch for those of the next process."""
        store, count, last = None, 0, b""
        following = f"alive/{(self.rank.index + 1) % self.rank.world}"
        while not self._over.wait(BEAT):
            try:
                store = store or _client()
                count += 1
                store.set(f"alive/{self.rank.index}", str(count))
                self._failed = store.check(["failed"])
                sign = store.get(following) if store.check([following]) else last
                if sign != last:
                    last, self._seen = sign, time.monotonic()
                self._heard = time.monotonic()
            except Exception:  # torch's store errors share no base class; what counts is how long the store is silent
                store = None

    def _guard(self) -> None:
        """End this process when the job has ended, whatever it is waiting for; its files are whole or absent."""
        while not self._over.wait(BEAT):
            now = time.monotonic()
            if self._failing:
                continue
            if self._failed:
                time.sleep(2 * BEAT)
            elif now - self._heard > self.patience:
                if ranks.local().index == 0:
                    self._tell(
                        f"The other processes' store at {_address()} has not answered for {self.patience:g} s "
                        "(train.peer-timeout): its machine is not to be reached. What was finished is kept; the same "
                        "command goes on from there."
                    )
            elif now - self._seen > self.patience:
                if self._is_first_to_fail():
                    self._tell(str(self._lost()))
            else:
                continue
            if not self._over.is_set() and not self._failing:
                os._exit(STATUS)


@contextmanager
def opened(patience: float | None = None, tell: Callable[[str], None] | None = None) -> Iterator[Job | None]:
    """The job of the processes that torchrun started, or None for a single process or a group that the caller formed.

    At the end all processes wait for each other. Jobs can be nested: the inner one is the outer one.

    Args:
        patience: see `Job`; None keeps the value it has, by default `PATIENCE`.
        tell: reports the end of the job where this process is ended in the middle of something; to stderr by default.

    Raises:
        EdistillError: the environment announces several processes, and they do not meet.
        LostError: another process is gone.
        EndedError: another process failed.
    """
    global _open
    rank = ranks.current()
    if rank.world == 1:
        yield None
        return
    from torch import distributed

    if _open is not None or distributed.is_initialized():
        if _open is not None and patience is not None:
            _open.patience = patience
        yield _open
        return
    store = _store(rank)
    _open = Job(rank, tell or _to_stderr)
    _open.patience = patience or _open.patience
    try:
        _meet(rank, store)
        yield _open
        ranks.wait()
        distributed.destroy_process_group()
    except BaseException as error:
        told = _open.told(error)
        if told is error:
            raise
        raise told or EndedError("Another process of the job failed, and says why.") from error
    finally:
        _open.end()
        _open = None


def _store(rank: Rank) -> Any:
    """The store through which the processes meet."""
    import torch

    global _meetings
    distributed: Any = torch.distributed  # exports more than its stub declares
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise EdistillError(
            f"The environment has WORLD_SIZE {rank.world} and no {' and no '.join(missing)}, and torchrun sets them "
            f"all. Start with torchrun --nproc-per-node {rank.world} -m ensemble_distill, or unset RANK and WORLD_SIZE."
        )
    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=timedelta(seconds=MEETING)))
    except (RuntimeError, ValueError, OSError) as error:
        raise _unreached(rank, error) from None
    _meetings += 1
    return distributed.PrefixStore(f"group/{_attempt()}", store)


def _meet(rank: Rank, store: Any) -> None:
    import torch

    devices = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
    try:
        torch.distributed.init_process_group(
            backend, store=store, rank=rank.index, world_size=rank.world, timeout=LONGEST
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise _unreached(rank, error) from None


def _unreached(rank: Rank, error: Exception) -> EdistillError:
    return EdistillError(
        f"Process {rank.index} of {rank.world} ({socket.gethostname()}) does not reach the others by {_address()}: "
        f"{first_line(error)}. Look at MASTER_ADDR and MASTER_PORT, and, where a machine has several networks, name "
        "the one that they share: GLOO_SOCKET_IFNAME=eth0."
    )


def _client() -> Any:
    """A separate connection to the job's store, since a thread that waits for an answer blocks all others on its
    connection."""
    import torch

    distributed: Any = torch.distributed
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10 * BEAT)
    )
    return distributed.PrefixStore(f"job/{_attempt()}", store)


def _attempt() -> str:
    """Tells this meeting from others in the same store, which torchrun --max-restarts keeps across restarts."""
    return f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}.{_meetings}"


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _to_stderr(text: str) -> None:
    os.write(2, f"{text}\n".encode())  # the stream object may be in use: this runs between any two steps of the program
