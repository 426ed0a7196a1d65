"""One writer at a time, by a lock that a dead writer does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import LOCK, refuse_outside, remove_temporaries


class BusyError(EdistillError):
    """Another process is writing there."""


@contextmanager
def one_writer(folder: Path, within: Path | None = None, patience: float = 0.0) -> Iterator[None]:
    """Hold `folder` for writing. The system frees the lock when its holder dies, so none is ever stale.

    Args:
        within: the folder that a user named, where `folder` lies below it.
        patience: seconds to wait for another process.

    Raises:
        BusyError: another process is writing there now.
        EdistillError: a link leads out of `within`.
    """
    if within is not None:
        refuse_outside(within, folder / LOCK)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_linked(folder / LOCK)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except filelock.Timeout:
        raise BusyError(
            f"Another process is writing to {folder}. Wait until it ends, then run the command again."
        ) from None
    try:
        remove_temporaries(folder)  # of a writer that was killed
        yield
    finally:
        # what was asked for was refused; or somebody removed the folder meanwhile
        if new and folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
        lock.release()


def _refuse_linked(lock: Path) -> None:
    """Raise EdistillError for a lock that is a link: taking it would empty the file that it leads to."""
    if lock.is_symlink():
        raise EdistillError(f"{lock} is a link to {lock.readlink()}, and a lock is a file. Delete it.")
