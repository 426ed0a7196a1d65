"""Ctrl-C and SIGTERM, from the first import on: one line and the status that shells have for it, however often.

It imports nothing that takes time, since it stands guard over what does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STATUS = 130  # of Ctrl-C: 128 and the number of the signal, as shells have it
GOES_ON = "What was finished is kept; run the same command to continue."
AGAIN = "Nothing is left half done; run the same command to start over."
BEGIN_AGAIN = {"calibrate", "compare", "doctor", "evaluate", "export", "init", "inspect", "predict", "verify"}
LONGEST = 200  # characters of a command that is told again

_came = signal.SIGINT  # which of the two it was
_line = ""  # the command, as it was given


def install() -> None:
    """Take over both signals in this process; not where a parent wants one ignored, as nohup and others do."""
    global _line
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _first)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _first)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # else the command is torchrun's, too
    _line = _command(sys.argv[1:]) if alone else ""


def pressed() -> bool:
    """Whether one came already: what is raised after it comes of it, as where an import was left half done."""
    return any(signal.getsignal(number) in (_second, _leave) for number in (signal.SIGINT, signal.SIGTERM))


def untold() -> bool:
    """Whether one came, and nobody has said so."""
    return any(signal.getsignal(number) is _second for number in (signal.SIGINT, signal.SIGTERM))


def status() -> int:
    """130 of Ctrl-C, 143 of SIGTERM."""
    return 128 + _came


def told() -> str:
    """What happened, and how to go on."""
    what = "Interrupted" if _came == signal.SIGINT else "Ended by SIGTERM"
    after = AGAIN if BEGIN_AGAIN & set(_line.split()[1:2]) else GOES_ON
    return f"{what}. {after}" if not _line else f"{what}. {after[:-1]}: {_line}"


def tell() -> None:
    """Say that the command was interrupted; from now on another signal says nothing more."""
    _become(_leave)
    # CPython remembers an interrupt of code in a string, as of a dataclass in an import, until more such code runs, and
    # would end the process by the signal although it was answered
    exec("")
    if _speaks():
        sys.stderr.write(f"{told()}\n")
        sys.stderr.flush()


def _speaks() -> bool:
    """Of several processes, which all get the signal, the first one does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def left_to_child() -> Iterator[None]:
    """While a child runs in the same terminal, Ctrl-C is the child's: it says so, and its status tells."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _ignore)  # a function, since SIG_IGN would be the child's too
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _command(words: list[str]) -> str:
    """The command line to give again; nothing where it is long, or a terminal would obey some of it."""
    import shlex

    line = shlex.join(["edistill", *words])
    return line if line.isprintable() and len(line) <= LONGEST else ""


def _become(handler: Any) -> None:
    """Let both signals be answered so from now on, where they are ours."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (_first, _second):
            signal.signal(number, handler)


def _first(number: int, _: Any) -> None:
    global _came
    _came = signal.Signals(number)
    _become(_second)
    raise KeyboardInterrupt


def _second(*_: Any) -> None:
    """The first is still being handled. Files are whole or absent whenever the process dies, so it can go at once."""
    if _speaks():
        os.write(2, f"{told()}\n".encode())  # the stream itself may be in use: this ran between any two steps
    os._exit(status())


def _leave(*_: Any) -> None:
    os._exit(status())


def _ignore(*_: Any) -> None: ...
