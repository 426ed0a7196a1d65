"""Delaying Ctrl-C and SIGTERM until work in progress is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_waits() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C and SIGTERM to the end of the block, and yield a function that says whether one has come.

    At the end the signal is raised again for the handler it was meant for. A second signal is not delayed. Ignored
    signals stay ignored. Outside the main thread, which alone receives signals, nothing is delayed.
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
