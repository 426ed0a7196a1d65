"""Progress as events: rooms report, and the command line alone decides how to show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives the events of a long step; `advance` counts in the unit that `start` named."""

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int = 1, facts: Mapping[str, float] | None = None) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


class Silent:
    """The listener of a library call: it shows nothing, and keeps warnings and notes."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int = 1, facts: Mapping[str, float] | None = None) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
