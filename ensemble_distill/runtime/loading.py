"""One way to load batches, in this process or in others, whose errors stay readable and whose deaths are told."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ensemble_distill.errors import EdistillError

Row = TypeVar("Row")
Batch = TypeVar("Batch")

_loading: set[BaseProcess] = set()  # the loader processes of every iteration that goes on
_waiting = 0  # iterations that wait for a batch just now
_END = object()


def _silence(worker: int) -> None:
    """In a loader process: what its own threads say when the parent stops listening is nothing new."""
    sys.excepthook = lambda *_: None


class _Failure:
    """What went wrong with a row, on its way as a value: torch would raise it in the parent as a page of traceback."""

    def __init__(self, error: BaseException) -> None:
        self.error = _portable(error)


class _Carrying(Dataset[Any]):
    """Hands on whatever a row raises, also where code of the user's ends the process (sys.exit)."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except (Exception, SystemExit) as error:
            return _Failure(error)


class _Collate:
    """Collates rows, or hands on the first failure among them."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> Any:
        failure = next((row for row in rows if isinstance(row, _Failure)), None)
        if failure is not None:
            return failure
        try:
            return self.collate(rows)
        except Exception as error:
            return _Failure(error)


def batches(
    dataset: Dataset[Row],
    batch_sampler: Iterable[Sequence[Any]],
    collate: Callable[[list[Row]], Batch],
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """The batches of a sampler, in its order whatever the number of worker processes.

    Raises:
        EdistillError: a worker process died.
        Exception: what reading a row raised, in whichever process.
    """
    loader: DataLoader[Any] = DataLoader(
        _Carrying(dataset) if workers else dataset,
        batch_sampler=batch_sampler,  # type: ignore[arg-type]  # torch names the sampler's class, and takes iterables
        collate_fn=_Collate(collate) if workers else collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_silence if workers else None,
        # a generator of its own: else the loader draws from the one that dropout does, once more in each resume
        generator=torch.Generator(),
    )
    loaded, own = _started(loader)
    try:
        while True:
            with _deaths_told(workers, own):
                batch: Any = next(loaded, _END)
            if batch is _END:
                return
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
    finally:
        _loading.difference_update(own)


def _started(loader: DataLoader[Any]) -> tuple[Iterator[Any], list[BaseProcess]]:
    """The loader's iterator, and the processes that it started."""
    if loader.num_workers == 0:
        return iter(loader), []
    before = set(multiprocessing.active_children())
    with _uninterrupted():
        loaded = iter(loader)
    own = [process for process in multiprocessing.active_children() if process not in before]
    _loading.update(own)
    _hear_deaths()
    return loaded, own


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes started meanwhile never get Ctrl-C, which their parent answers for; in this process it waits."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _deaths_told(workers: int, own: Sequence[BaseProcess]) -> Iterator[None]:
    """Tells of the death of a process whose batch is waited for. One that takes long is left alone."""
    global _waiting
    try:
        try:
            _waiting += 1
            _refuse_dead(own, workers)
            yield
        finally:
            _waiting -= 1
    except EdistillError:
        raise
    except Exception:  # torch's own error of a death is a page that says less, or one of the connection that broke
        ended = wait([process.sentinel for process in _loading], timeout=1)
        for process in [process for process in _loading if process.sentinel in ended]:
            process.join(10)  # its pipes close a moment before it tells how it ended
        _refuse_dead(_loading, workers)
        raise


def _refuse_dead(processes: Iterable[BaseProcess], workers: int) -> None:
    """Refuse to go on without a process that should still be at work.

    Raises:
        EdistillError: it ended.
    """
    dead = next((process for process in processes if process.exitcode is not None), None)
    if dead is not None:
        fewer = f"fewer of them than {workers} (--workers), or 0" if workers > 1 else "--workers 0"
        raise EdistillError(
            f"A loader process {_end(dead.exitcode or 0)}. Run the command again with {fewer}, which loads in the main "
            "process; what was finished is kept."
        ) from None


def _end(status: int) -> str:
    if status >= 0:
        return f"ended by itself with status {status}: code that it ran, a dataset's or a view's, ended it"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
    likely = {
        "SIGKILL": ": most likely the memory ran out, and the system killed it",
        "SIGBUS": ": most likely the shared memory ran out (/dev/shm; in a container --shm-size)",
        "SIGSEGV": ": code that it ran crashed",
    }
    return f"was killed by {name}{likely.get(name, '')}"


def _hear_deaths() -> None:
    """Let torch's handler, which raises the death of a process wherever this one is, raise it only while a batch is
    waited for: elsewhere it would be taken for an error of what runs there. It is asked at the next batch again."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return
    torchs = signal.getsignal(signal.SIGCHLD)
    if callable(torchs) and not isinstance(torchs, _Hearing):
        signal.signal(signal.SIGCHLD, _Hearing(torchs))


class _Hearing:
    def __init__(self, handler: Callable[[int, Any], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: Any) -> None:
        if _waiting:
            self.handler(number, frame)


def _portable(error: BaseException) -> BaseException:
    """The error, or where it cannot cross to another process, one that says the same; its traceback goes as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # anyone's class may need more to be made than its text
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error
