"""Ctrl-C, from the first import on: one line and status 130, however often it is pressed.

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

STATUS = 130  # 128 and the number of the signal, as shells have it
TOLD = "Interrupted. What was finished is kept; the same command goes on from there."


def install() -> None:
    """Take over Ctrl-C in this process; not where a parent wants it ignored, as nohup does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _first)


def pressed() -> bool:
    """Whether Ctrl-C came already: what is raised after it comes of it, as where an import was left half done."""
    return signal.getsignal(signal.SIGINT) in (_second, _leave)


def tell() -> None:
    """Say that the command was interrupted; from now on another Ctrl-C says nothing more."""
    if signal.getsignal(signal.SIGINT) in (_first, _second):
        signal.signal(signal.SIGINT, _leave)
    sys.stderr.write(f"{TOLD}\n")
    sys.stderr.flush()


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


def _first(*_: Any) -> None:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(*_: Any) -> None:
    """The first is still being handled. Files are whole or absent whenever the process dies, so it can go at once."""
    os.write(2, f"{TOLD}\n".encode())  # the stream itself may be in use: this ran between any two steps
    os._exit(STATUS)


def _leave(*_: Any) -> None:
    os._exit(STATUS)


def _ignore(*_: Any) -> None: ...
