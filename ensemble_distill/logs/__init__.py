"""Where the figures of a training go while it runs, a place a file; a file's name is what `--log` calls it.

A file defines `LOG`, a class that is made from a `LogPlace` and is a `Log`. Nothing is opened unless it is asked for.
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
    """What a log is of.

    Attributes:
        folder: what it writes below.
        project, name: what to call it where runs stand together.
        settings: that make the run what it is, by dotted key.
    """

    folder: Path
    project: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Log(Protocol):
    """Receives the figures of a training, those of each step once, with steps that rise."""

    def begin(self, step: int) -> None:
        """Open it for what comes after that step. A training that was killed may have said more: that is not to stand
        there twice."""
        ...

    def add(self, step: int, figures: Mapping[str, float]) -> None: ...

    def flush(self) -> None:
        """Keep what was added: a checkpoint is to follow, after which it is not added again."""
        ...

    def close(self, finished: bool) -> None: ...


def log_names() -> tuple[str, ...]:
    """What `--log` knows, in alphabetical order."""
    return _LOGS.keys


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise EdistillError where there is no log of a name."""
    for name in names:
        if name not in log_names():
            hint = meant(name, log_names(), f"Use one of {', '.join(log_names())}.")
            raise EdistillError(f"output.log has {name!r}, which is not a log. {hint}")


def open_logs(names: Sequence[str], place: LogPlace, progress: Progress) -> Logs:
    """Logs by their names, of the first of several processes alone; nothing is written before they begin.

    Raises:
        EdistillError: there is no log of a name, or what it needs is not installed.
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
    """Several logs as one, which has what was said of a step in one piece.

    A log that fails at its beginning is refused; one that does so later is told of and left out, since a server that
    does not answer is no reason to lose a training.
    """

    def __init__(self, logs: Mapping[str, Log] | None = None, progress: Progress | None = None) -> None:
        self._logs, self._progress = dict(logs or {}), progress or Silent()
        self._begun = False
        self._said: dict[int, dict[str, float]] = {}  # of each step that was not handed on yet

    def begin(self, step: int) -> None:
        """Once; what was added before is handed on. Raises EdistillError where a log cannot be opened."""
        if not self._begun:
            self._each(lambda log: log.begin(step), late=bool(self._said))
            self._begun = True

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step; more may be said of the same step."""
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
            except Exception as error:  # of libraries of others, which reach for servers
                told = f"--log {name} failed: {quoted(error)}."
                if not late:
                    raise EdistillError(f"{told} Fix that, or go on without it: --set output.log=") from error
                del self._logs[name]
                self._progress.warn(f"{told} The training goes on without it.")
