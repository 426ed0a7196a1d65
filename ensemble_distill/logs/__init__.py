"""Logs that receive the figures of a training while it runs, one in each module; `--log` takes the module's name.

A module defines `LOG`, a class that is constructed from a `LogPlace` and implements `Log`. A log is opened only if it
is requested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ensemble_distill.errors import EdistillError, meant, quoted
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.registry import Registry

_LOGS = Registry(__name__, "LOG")


@dataclass(frozen=True)
class LogPlace:
    """Where a log goes, and which run it is of.

    Attributes:
        folder: the folder for its files.
        project, name: names of the project and the run, for services that list many runs.
        settings: the settings that define the run, by dotted key.
    """

    folder: Path
    project: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Log(Protocol):
    """Receives the figures of a training: each step's once, in the order of the steps."""

    def begin(self, step: int) -> None:
        """Open the log for figures after `step`.

        A killed training may have logged later steps; these must not be in the log twice.
        """
        ...

    def add(self, step: int, figures: Mapping[str, float]) -> None: ...

    def flush(self) -> None:
        """Store what was added: a checkpoint follows, and a training resumed from it does not add it again."""
        ...

    def close(self, finished: bool) -> None: ...


def log_names() -> tuple[str, ...]:
    """The names that `--log` accepts, in alphabetical order."""
    return _LOGS.keys


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise EdistillError for a name without a log."""
    for name in names:
        if name not in log_names():
            hint = meant(name, log_names(), f"Use one of {', '.join(log_names())}.")
            raise EdistillError(f"output.log has {name!r}, which is not a log. {hint}")


def open_logs(names: Sequence[str], place: LogPlace, progress: Progress) -> Logs:
    """Create logs by name, on the first of several processes only; nothing is written before they begin.

    Raises:
        EdistillError: a name has no log, or a package that the log needs is not installed.
    """
    refuse_unknown(names)
    logs = {name: _open(name, place) for name in names}
    return Logs(logs if ranks.current().index == 0 else {}, progress)


def _open(name: str, place: LogPlace) -> Log:
    try:
        log: Log = _LOGS[name].LOG(place)
    except ImportError as error:
        raise EdistillError(
            f"--log {name} needs what is not installed ({quoted(error)}). Run pip install 'edistill[{name}]'."
        ) from None
    return log


class Logs:
    """Several logs as one; it hands them each step's figures in one piece.

    A log that fails as it begins raises an error. One that fails later is dropped with a warning, since a server that
    does not answer is no reason to lose a training.
    """

    def __init__(self, logs: Mapping[str, Log] | None = None, progress: Progress | None = None) -> None:
        self._logs, self._progress = dict(logs or {}), progress or Silent()
        self._begun = False
        self._said: dict[int, dict[str, float]] = {}  # by step, not handed on yet

    def begin(self, step: int) -> None:
        """Begin the logs, once; figures added before are handed on later.

        Raises:
            EdistillError: a log cannot be opened, and no figures were added before.
        """
        if not self._begun:
            self._each(lambda log: log.begin(step), late=bool(self._said))
            self._begun = True

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add figures of a step; more of the same step may follow."""
        if self._logs:
            if self._begun and step not in self._said:
                self._hand_on()
            self._said.setdefault(step, {}).update(figures)

    def flush(self) -> None:
        self._hand_on()
        self._each(lambda log: log.flush())

    def close(self, finished: bool) -> None:
        if self._begun:
            self._hand_on()
            self._each(lambda log: log.close(finished))

    def _hand_on(self) -> None:
        said, self._said = self._said, {}
        for step, figures in said.items():
            self._each(lambda log, step=step, figures=figures: log.add(step, figures))  # type: ignore[misc]

    def _each(self, act: Callable[[Log], None], late: bool = True) -> None:
        for name, log in list(self._logs.items()):
            try:
                act(log)
            except Exception as error:  # third-party libraries contact servers
                told = f"--log {name} failed: {quoted(error)}."
                if not late:
                    raise EdistillError(f"{told} Fix that, or go on without it: --set output.log=") from error
                del self._logs[name]
                self._progress.warn(f"{told} The training goes on without it.")
