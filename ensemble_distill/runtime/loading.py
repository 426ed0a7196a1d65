"""The one way to load batches, in this process or in worker processes, with readable errors and reported worker
deaths."""

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

_loading: set[BaseProcess] = set()  # the worker processes of all running iterations
_waiting = 0  # iterations that are waiting for a batch
_END = object()


def _silence(worker: int) -> None:
    """In a worker process: suppress the tracebacks of its threads once the parent has stopped listening."""
    sys.excepthook = lambda *_: None


class _Failure:
    """An error of a row, passed on as a value: torch would re-raise it in the parent as a page of traceback."""

    def __init__(self, error: BaseException) -> None:
        self.error = _portable(error)


class _Carrying(Dataset[Any]):
    """Returns whatever reading a row raises as a `_Failure`, even the SystemExit of user code."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except (Exception, SystemExit) as error:
            return _Failure(error)


class _Collate:
    """Collates rows, or passes on the first failure among them."""

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
    """The batches of a sampler, in its order for any number of worker processes.

    Raises:
        EdistillError: a worker process died.
        Exception: whatever reading a row raised, in either process.
    """
    loader: DataLoader[Any] = DataLoader(
        _Carrying(dataset) if workers else dataset,
        batch_sampler=batch_sampler,  # type: ignore[arg-type]  # torch names the sampler's class, and takes iterables
        collate_fn=_Collate(collate) if workers else collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_silence if workers else None,
        # its own generator: else the loader draws from dropout's, once more at every resume
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
    """The loader's iterator and the processes that it started."""
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
    """Processes started in the block never get Ctrl-C, which their parent handles; in this process it is delayed."""
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
    """Report the death of a process while its batch is waited for; a slow process is left alone."""
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
    except Exception:  # torch's own error of a death, a page that says less, or one of the broken connection
        ended = wait([process.sentinel for process in _loading], timeout=1)
        for process in [process for process in _loading if process.sentinel in ended]:
            process.join(10)  # its pipes close a moment before its exit status is known
        _refuse_dead(_loading, workers)
        raise


def _refuse_dead(processes: Iterable[BaseProcess], workers: int) -> None:
    """Refuse to continue without a process that should still be running.

    Raises:
        EdistillError: one has ended.
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
    """Restrict torch's SIGCHLD handler to the times when a batch is waited for.

    The handler raises a worker's death wherever the main thread happens to be; elsewhere the error would seem to come
    from the code that runs there. The next batch checks for deaths anyway.
    """
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
    """The error, or a RuntimeError with its text if it cannot be pickled; its traceback is added as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class may need more arguments than its text to be created
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error
