"""Ctrl-C and SIGTERM while something is half done: they wait until it is whole, and then do what they always did."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_waits() -> Iterator[Callable[[], bool]]:
    """Yields what says whether a stop was asked for. When the block ends the signal is raised again, for whoever
    answers it; a second one does not wait.

    Signals that are ignored stay so, and in other threads than the main one, which get none, nothing waits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in ours.items():
            signal.signal(number, handler)

    def hear(number: int, _: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            restore()
            signal.raise_signal(number)

    for number in ours:
        signal.signal(number, hear)
    try:
        yield lambda: bool(asked)
    finally:
        restore()
        if len(asked) == 1:
            signal.raise_signal(asked[0])
