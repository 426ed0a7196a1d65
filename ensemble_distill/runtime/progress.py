"""Progress as events: rooms report, and only the command line decides how that looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives what a long step does. `advance` counts in the unit `start` named."""

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int = 1, facts: Mapping[str, float] | None = None) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


class Silent:
    """The listener of a library call: hears everything, says nothing, keeps warnings and notes."""

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
