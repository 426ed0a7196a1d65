"""One writer at a time, by a lock that a dead writer does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import remove_temporaries


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` for writing. The system frees the lock when its holder dies, so none is ever stale.

    Raises:
        EdistillError: another process is writing there now.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise EdistillError(
            f"Another process is writing to {folder}. Wait until it ends, then run the command again."
        ) from None
    try:
        remove_temporaries(folder)  # of a writer that was killed
        yield
    finally:
        if new and [path.name for path in folder.iterdir()] == [".lock"]:  # what was asked for was refused
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()
        lock.release()
