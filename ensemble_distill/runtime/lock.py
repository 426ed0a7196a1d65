"""One writer at a time, by a lock that never outlives its holder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import LOCK, refuse_outside, remove_temporaries


class BusyError(EdistillError):
    """Another process is writing to the folder."""


@contextmanager
def one_writer(folder: Path, within: Path | None = None, patience: float = 0.0) -> Iterator[None]:
    """Hold `folder` for writing; the system frees the lock when its holder dies, so it is never stale.

    Args:
        within: the folder, named by the user, that `folder` lies below.
        patience: seconds to wait for another process.

    Raises:
        BusyError: another process is writing to the folder.
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
        remove_temporaries(folder)  # left by a killed writer
        yield
    finally:
        # the work was refused, or somebody removed the folder meanwhile
        if new and folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
        lock.release()


def _refuse_linked(lock: Path) -> None:
    """Raise EdistillError if the lock is a link, since taking it would empty the link's target."""
    if lock.is_symlink():
        raise EdistillError(f"{lock} is a link to {lock.readlink()}, and a lock is a file. Delete it.")
