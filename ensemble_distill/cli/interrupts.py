"""Ctrl-C and SIGTERM, from the first import on: one line and the usual exit status, however often they come.

This module imports nothing slow, since it guards the imports that are.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STATUS = 130  # of Ctrl-C: 128 + the number of the signal, as in shells
GOES_ON = "What was finished is kept; run the same command to continue."
AGAIN = "Nothing is left half done; run the same command to start over."
BEGIN_AGAIN = {"calibrate", "compare", "doctor", "evaluate", "export", "init", "inspect", "predict", "verify"}
LONGEST = 200  # characters of a command that is repeated in the message

_came = signal.SIGINT  # the signal that came
_line = ""  # the command as it was given


def install() -> None:
    """Handle both signals in this process, unless a parent such as nohup has them ignored."""
    global _line
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _first)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _first)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # otherwise the user's command was torchrun
    _line = _command(sys.argv[1:]) if alone else ""


def pressed() -> bool:
    """Whether a signal has come already; an error after it is its consequence, such as a half-finished import."""
    return any(signal.getsignal(number) in (_second, _leave) for number in (signal.SIGINT, signal.SIGTERM))


def untold() -> bool:
    """Whether a signal has come that has not been reported."""
    return any(signal.getsignal(number) is _second for number in (signal.SIGINT, signal.SIGTERM))


def status() -> int:
    """The exit status: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _came


def told() -> str:
    """What happened, and how to continue."""
    what = "Interrupted" if _came == signal.SIGINT else "Ended by SIGTERM"
    after = AGAIN if BEGIN_AGAIN & set(_line.split()[1:2]) else GOES_ON
    return f"{what}. {after}" if not _line else f"{what}. {after[:-1]}: {_line}"


def tell() -> None:
    """Report the interrupt; any further signal then ends the process silently."""
    _become(_leave)
    # If an interrupt hits code compiled from a string, such as a dataclass in an import, CPython remembers it until
    # more such code runs, and would end the process by the signal even though it was handled.
    exec("")
    if _speaks():
        sys.stderr.write(f"{told()}\n")
        sys.stderr.flush()


def _speaks() -> bool:
    """Whether this process reports the signal: of several, which all receive it, the first one does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def left_to_child() -> Iterator[None]:
    """Leave Ctrl-C to a child process in the same terminal, which reports it and returns its status."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _ignore)  # a function, since the child would inherit SIG_IGN
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _command(words: list[str]) -> str:
    """The command line to repeat; "" if it is long, or contains characters that are not printable."""
    import shlex

    line = shlex.join(["edistill", *words])
    return line if line.isprintable() and len(line) <= LONGEST else ""


def _become(handler: Any) -> None:
    """Install another handler for both signals, if they are handled here."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (_first, _second):
            signal.signal(number, handler)


def _first(number: int, _: Any) -> None:
    global _came
    _came = signal.Signals(number)
    _become(_second)
    raise KeyboardInterrupt


def _second(*_: Any) -> None:
    """Exit at once while the first signal is still being handled; files are whole or absent whenever the process
    dies."""
    if _speaks():
        os.write(2, f"{told()}\n".encode())  # sys.stderr may be in use: this runs between any two steps
    os._exit(status())


def _leave(*_: Any) -> None:
    os._exit(status())


def _ignore(*_: Any) -> None: ...
