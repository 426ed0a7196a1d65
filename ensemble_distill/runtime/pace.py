"""The pace of a long task in words: rate, time left and memory. Nothing is printed here."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Mapping

from ensemble_distill.runtime.words import duration

OVER = 60.0  # seconds that the rate is averaged over, so that it shows the current pace and not the initial one
EACH = 1.0  # seconds between the moments that are kept for the rate


class Pace:
    """The pace of one task; the first step, which sets things up, does not count toward the rate.

    Args:
        total: the size of the whole task, in `unit`.
        done: what was done before the start, in `unit`.
    """

    def __init__(self, total: int, unit: str, done: int) -> None:
        self.total, self.unit, self.done = total, unit, done
        self.facts: dict[str, float] = {}
        self._kept: deque[tuple[float, int]] = deque()  # moments, and the amount done by each

    def advance(self, now: float, count: int, facts: Mapping[str, float] | None = None) -> None:
        """Add `count` at the moment `now`, in seconds; the latest value of each fact is kept."""
        self.done += count
        self.facts |= facts or {}
        if not self._kept or now - self._kept[-1][0] >= EACH:
            self._kept.append((now, self.done))
        while len(self._kept) > 2 and now - self._kept[1][0] >= OVER:
            self._kept.popleft()

    def rate(self, now: float) -> float | None:
        """Units a second; None before the second step."""
        if not self._kept or self.done == self._kept[0][1] or now <= self._kept[0][0]:
            return None
        then, done = self._kept[0]
        return (self.done - done) / (now - then)

    def __call__(self, now: float) -> str:
        """`7.1 steps/s, about 2 min left, loss 0.1234, memory 0.4 GB`; what is not known yet is left out."""
        rate = self.rate(now)
        parts = [] if rate is None else [f"{_short(rate)} {self.unit}/s", f"about {duration(self.left(rate))} left"]
        parts += [f"{name} {value:.4f}" for name, value in self.facts.items()]
        return ", ".join(parts + memory_told())

    def left(self, rate: float) -> float:
        """Seconds left at a rate in units per second."""
        return (self.total - self.done) / rate


def memory_told() -> list[str]:
    """The memory this process holds, and its GPU memory if it uses one, in words; empty where the system does not
    report it."""
    resident, reserved = memory_used(), _on_device()
    told = [] if resident is None else [f"memory {resident / 1e9:.1f} GB"]
    return told if reserved is None else [*told, f"on the GPU {reserved / 1e9:.1f} GB"]


def memory_used() -> int | None:
    """Bytes of memory this process holds; None where the system does not report it (other than Linux)."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123, a system file
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _on_device() -> int | None:
    torch = sys.modules.get("torch")  # not imported means not in use
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


def _short(rate: float) -> str:
    """Three digits: 0.0312, 7.12, 48.5, 1,230."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
