"""A file that one of several processes sees otherwise than the others, for ever or for a while."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

NEW_NAMESPACE, PRIVATE, BIND, DETACH = 0x20000, 0x44000, 0x1000, 2
LATE = 4.0  # seconds that a process waits for what another one sees, in place of 90


def see_other(other: Path, path: Path, late: float | None = None) -> None:
    """Let this process see another file at a path, for ever or for so many seconds. Linux, with the right to mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    calls = [
        lambda: libc.unshare(NEW_NAMESPACE),
        lambda: libc.mount(None, b"/", None, PRIVATE, None),
        lambda: libc.mount(os.fsencode(other), os.fsencode(path), None, BIND, None),
    ]
    for call in calls:
        if call() != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    if late is not None:
        timer = threading.Timer(late, lambda: libc.umount2(os.fsencode(path), DETACH))
        timer.daemon = True
        timer.start()


def can_see_apart(scratch: Path) -> bool:
    """Whether a process may have mounts of its own here."""
    one, other = scratch / "one", scratch / "its other"
    one.write_text("one")
    other.write_text("other")
    pid = os.fork()
    if pid == 0:
        try:
            see_other(other, one)
            os._exit(0 if one.read_text() == "other" else 1)
        except (OSError, AttributeError):  # other systems know of none
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0 and one.read_text() == "one"


def few_rows_and_little_patience() -> None:
    """So that several processes have blocks of a tiny split."""
    from ensemble_distill.cache import writer
    from ensemble_distill.runtime import shared

    writer.BLOCK_ROWS, shared.LATE = 16, LATE


def prepared(other: Path | None = None, path: Path | None = None, index: int = 0, late: float | None = None) -> None:
    """In a process of a job, before its command."""
    few_rows_and_little_patience()
    if other is not None and path is not None and os.environ["RANK"] == str(index):
        see_other(other, path, late)
