"""How a command ends: one message and one exit status for every outcome, and the traceback of a bug."""

from __future__ import annotations

import errno
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ensemble_distill import __version__
from ensemble_distill.cli import interrupts, render
from ensemble_distill.errors import EdistillError, first_line, quoted

BUG, MISTAKE = 1, 2
UNREAD = 141  # 128 + the number of SIGPIPE, as in shells, when a reader such as `head` has gone
SWITCH = "EDISTILL_TRACEBACK"  # this environment variable shows the traceback of any error
KEPT = "What was finished before is kept."
MENDS = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there",
    errno.EACCES: "Permit that",
    errno.EPERM: "Permit that",
    errno.EROFS: "Permit that",
}


@contextmanager
def exit_statuses() -> Iterator[None]:
    """Exit with 0 when done, 2 after a user's mistake, 130 or 143 after a signal, 141 if nobody reads stdout, 1 after a
    bug.

    A bug prints its traceback before its message. Other errors do so if `SWITCH` is set.
    """
    render.ready()
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        interrupts.tell()
        raise typer.Exit(interrupts.status()) from None
    except BrokenPipeError as error:
        _trace(error)
        render.hush()
        raise typer.Exit(UNREAD) from None
    except (Exception, SystemExit) as error:
        if interrupts.pressed():
            interrupts.tell()
            raise typer.Exit(interrupts.status()) from None
        told = mistake(error)
        _trace(error, always=told is None)
        render.fail(told or _bug(error))
        raise typer.Exit(BUG if told is None else MISTAKE) from None


def mistake(error: BaseException) -> str | None:
    """What a user can do about an error; None for a bug."""
    if isinstance(error, EdistillError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"A module of your own ended the process (sys.exit({error.code})). Import it without running it."
    if _is_out_of_memory(error):
        return (
            f"Out of memory: {first_line(error)}. {KEPT} Choose a smaller cache.batch-size or "
            "train.batch-size, fewer train.workers, or a smaller student; or close other programs."
        )
    if isinstance(error, OSError):  # a full disk, a folder without write permission, a name that is too long
        mend = MENDS.get(error.errno or 0, "Fix that")
        return f"{_named(error)}: {error.strerror or first_line(error)}. {KEPT} {mend}, and run the command again."
    if isinstance(error, UnicodeError):
        return f"A text or a name is not in the encoding it should be in (UTF-8): {first_line(error)}. Fix it. {KEPT}"
    if isinstance(error, RecursionError):
        return f"Something that was read is nested too deeply, or code of your own calls itself without end. {KEPT}"
    if isinstance(error, Warning):
        return (
            f"Python was asked to raise warnings as errors, and this one was given: {quoted(error)}. "
            f"Unset PYTHONWARNINGS, or leave -W out. {KEPT}"
        )
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # if it was not imported, the error is not from torch
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # torch has an error class for CUDA; errors of the CPU's allocator and of mps are known only by their text
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "backend out of memory")
    )


def _named(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return " and ".join(names) or "The system"


def _bug(error: BaseException) -> str:
    return (
        f"This is a bug in edistill {__version__}, not a mistake of yours: {quoted(error)}. "
        f"{KEPT} Please report it with the traceback above."
    )


def _trace(error: BaseException, always: bool = False) -> None:
    if always or os.environ.get(SWITCH, "0") not in ("", "0"):
        system = f"edistill {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        render.traceback("".join(traceback.format_exception(error)) + system)
