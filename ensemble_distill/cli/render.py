"""The only code that prints: results to stdout, progress and messages to stderr.

Names come from files, from users and from their data, so all that is shown goes through `harmless`: none of them
reaches the terminal as something to obey. What stdout cannot say in its encoding is written as an escape.
"""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from csv import writer as csv_writer
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from ensemble_distill.cli.inspected import ROWS, Sheet
from ensemble_distill.errors import first_line, parted
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.jsons import json_text
from ensemble_distill.runtime.names import harmless, harmless_cell, plain_markdown
from ensemble_distill.runtime.pace import Pace
from ensemble_distill.runtime.words import duration

if TYPE_CHECKING:
    from ensemble_distill.evaluation.tables import Sections

TELL_FIRST = 2.0  # seconds until the first line of progress where there is no terminal for a bar
TELL_EVERY = 60.0  # and between the others, at least
LINES = 50  # of the first hour's worth; later ones come as much more rarely as the work has taken longer
REDRAW = 0.2  # seconds between what a bar says
WIDE = 240  # when stdout is a pipe there is no terminal to fit, and a cut table is no data


_result: TextIO | None = None  # stdout as it was when the command began
_quiet = False  # whether progress and notes are left out


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the error that rich is handling: it would end the process itself


def _console(stderr: bool) -> Console:
    file = sys.stderr if stderr else _result or sys.stdout
    console = _Console(file=file, soft_wrap=True, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


# --- the streams ------------------------------------------------------------------------------------------------


@contextmanager
def result_apart(quiet: bool = False) -> Iterator[None]:
    """Whatever a user's own module prints meanwhile goes to stderr, as warnings do: stdout is the result alone.

    Args:
        quiet: leave out progress and notes; warnings and errors stay.
    """
    global _result, _quiet
    before, _result, shown = (_result, _quiet), sys.stdout, warnings.showwarning
    _quiet, warnings.showwarning = quiet, _warned
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        (_result, _quiet), warnings.showwarning = before, shown


@contextmanager
def silenced(silent: bool) -> Iterator[Callable[[str], None]]:
    """Where `silent`, nothing is shown meanwhile: another process speaks. Yields what shows an error all the same."""
    loud = sys.stderr

    def tell(text: str) -> None:
        with redirect_stderr(loud):
            fail(text)

    if not silent:
        yield tell
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield tell


def ready() -> None:
    """Let both streams take any text, and be there: a program may be started with either of them closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115, for as long as the process runs
        with suppress(AttributeError):  # what a caller from Python put there may be any file
            getattr(sys, name).reconfigure(errors="backslashreplace")


def hush() -> None:
    """Nobody reads stdout any more: what is left in its buffer goes nowhere, without a word."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of a library or of a user's own code, in one line."""
    warn(f"{category.__name__}: {first_line(message)} ({Path(filename).name}, line {lineno})")


# --- messages ---------------------------------------------------------------------------------------------------


def near(text: str) -> str:
    """Paths under the working folder as the user would type them."""
    try:
        here = str(Path.cwd()) + os.sep
    except OSError:  # the working folder is gone
        return text
    return text.replace(here, "")


def shown(text: str) -> str:
    """A text as rich prints it unchanged, but for what a terminal would obey."""
    return escape(harmless(text))


def _indented(text: str) -> str:
    """Lines after the first are indented, so that none of them, from a name, passes for a message of its own."""
    return shown(near(text)).replace("\n", "\n  ")


def fail(text: str) -> None:
    """An error, a blank line, and in a line of its own what to do."""
    wrong, remedy = parted(text)
    console = _console(stderr=True)
    console.print(f"[bold red]Error:[/] {_indented(wrong)}")
    if remedy:
        console.print(f"\n[bold cyan]hint:[/] {_indented(remedy)}")


def warn(text: str) -> None:
    _console(stderr=True).print(f"[yellow]Warning:[/] {_indented(text)}")


def message(text: str) -> None:
    """What goes beside a result; nothing where `--quiet` was given."""
    if not _quiet:
        _console(stderr=True).print(_indented(text))


def traceback(text: str) -> None:
    """For a bug report."""
    _console(stderr=True).print(shown(text), end="")


# --- results ----------------------------------------------------------------------------------------------------


def text(content: str) -> None:
    """A result that is already text."""
    out = _result or sys.stdout
    out.write(harmless(content))
    out.flush()


def document(record: Any) -> None:
    """Exactly one JSON document, of the exact names: what stdout cannot say is escaped as JSON does."""
    out = _result or sys.stdout
    utf8 = (out.encoding or "ascii").lower().replace("-", "") == "utf8"
    text(json_text(record, only_ascii=not utf8, default=str))


def _cell(text: str) -> str:
    """One line: a name that holds a line feed shows it as an escape."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    drawn = _columns(title, columns)
    for row in rows:
        drawn.add_row(*map(_cell, row))
    _console(stderr=False).print(drawn)


def _columns(title: str | None, columns: Sequence[str]) -> Table:
    drawn = Table(title=None if title is None else _cell(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(_cell(column), justify="left" if index == 0 else "right", overflow="fold")
    return drawn


Lines = Sequence[str]


def grid(title: str, columns: Sequence[str], sections: Sections, caption: Lines | None = None) -> None:
    """A table in sections, each under its title."""
    drawn = _columns(None, columns)
    for name, rows in sections.items():
        drawn.add_row(f"[bold]{_cell(name)}[/]")
        for row in rows:
            drawn.add_row(*map(_cell, row))
        drawn.add_section()
    console = _console(stderr=False)
    console.print(f"[bold]{_cell(title)}[/]")  # outside the table, which would fold them at its own width
    console.print(drawn)
    if caption is not None:
        console.print("\n".join(map(_cell, caption)))


def markdown(title: str, columns: Sequence[str], sections: Sections, caption: Lines | None = None) -> None:
    """A table in sections, as `grid` shows it, in markdown."""
    lines = [_piped(map(plain_markdown, columns)), _piped(["---", *["---:"] * (len(columns) - 1)])]
    for name, rows in sections.items():
        lines += [_piped([f"**{plain_markdown(name)}**", *[""] * (len(columns) - 1)])]
        lines += [_piped(map(plain_markdown, row)) for row in rows]
    told = [] if caption is None else ["  \n".join(map(plain_markdown, caption))]
    text("\n\n".join([f"**{plain_markdown(title)}**", "\n".join(lines), *told]) + "\n\n")


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Values as they are, with every digit; nothing where there is none. No name is a formula."""
    file = io.StringIO()
    writer = csv_writer(file, lineterminator="\n")
    writer.writerows([harmless_cell(cell) for cell in row] for row in [columns, *rows])
    text(file.getvalue())


def facts(title: str, pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line; nested records are indented."""
    console = _console(stderr=False)
    console.print(f"[bold]{_cell(title)}[/]")
    for line in _lines(pairs, "  "):
        console.print(_cell(line))


def _lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, Mapping) or (isinstance(item, list) and item and isinstance(item[0], Mapping)):
                yield f"{indent}{name}:"
                yield from _lines(item, indent + "  ")
            else:
                yield f"{indent}{name}: {_inline(item)}"
    elif isinstance(value, list):
        for item in value:
            first, *rest = _lines(item, indent + "  ")
            yield f"{indent}- {first.strip()}"
            yield from rest


def _inline(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_inline(item) for item in value) or "none"
    return "none" if value is None else str(value)


def sheet(shown: Sheet) -> None:
    """What a path is: its title, a fact a line under it, a table of at most `ROWS`, and the command that comes next."""
    console = _console(stderr=False)
    console.print(f"[bold]{_cell(shown.title)}[/]")
    facts = [(name, value) for name, value in shown.facts if value]
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        console.print(_cell(f"  {name:<{width}}  {value}"))
    if shown.rows:
        drawn = _columns(None, shown.columns)
        for row in shown.rows[:ROWS]:
            drawn.add_row(*map(_cell, row))
        console.print(drawn)
    if len(shown.rows) > ROWS:
        console.print(f"  and {len(shown.rows) - ROWS:,} more: --json lists all")
    if shown.next is not None:
        console.print(_cell(f"next: {shown.next}"))


class Shown:
    """Progress on stderr: a bar on a terminal, elsewhere a line now and then; of several processes the first's alone.

    Where `--quiet` was given only warnings are left of it.
    """

    def __init__(self) -> None:
        self.console = _console(stderr=True)
        self.silent = _quiet or ranks.current().index > 0
        self.bar: Progress | None = None
        self.name, self.pace, self.begun = "", Pace(0, "", 0), 0.0
        self.told, self.pause = 0.0, TELL_FIRST
        self.shown: set[str] = set()

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self._leave()
        self.name, self.pace = task, Pace(total, unit, done)
        self.told = self.begun = time.monotonic()
        self.pause = TELL_FIRST
        if done and task not in self.shown:  # else it was only interrupted by another task
            self.note(f"{task}: going on at {unit[:-1]} {done:,} of {total:,}")
        self.shown.add(task)
        if self.console.is_terminal and not self.silent:
            pace = TextColumn("{task.fields[pace]}", markup=False, style="dim")
            parts = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
            self.bar = Progress(*parts, TextColumn(unit), pace, console=self.console)
            self.bar.start()
            self.bar.add_task(harmless(task), total=total, completed=done, pace="")

    def advance(self, count: int = 1, facts: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        self.pace.advance(now, count, facts)
        if self.bar is not None:
            if now - self.told > REDRAW or self.pace.done >= self.pace.total:
                self.told = now
                pace = harmless(self.pace(now)) if self.pace.done < self.pace.total else self._ended(now)
                self.bar.update(TaskID(0), completed=self.pace.done, pace=pace)
        elif now - self.told > self.pause and self.pace.rate(now) is not None and self.pace.done < self.pace.total:
            # a log file: soon, each minute, and in long work ever more rarely
            self.told, self.pause = now, max(TELL_EVERY, (now - self.begun) / LINES)
            self.note(f"{self.name}: {self.pace.done:,} of {self.pace.total:,} {self.pace.unit}, {self.pace(now)}")

    def finish(self) -> None:
        if self.bar is None:
            ended = self._ended(time.monotonic())
            self.note(f"{self.name}: {self.pace.total:,} {self.pace.unit}{ended and f' in {ended}'}")
        self._leave()

    def _ended(self, now: float) -> str:
        """How long it took, where anybody would ask."""
        return duration(now - self.begun) if now - self.begun >= TELL_FIRST else ""

    def _leave(self) -> None:
        """Give the terminal back: at the end, before another task, and after an error or an interrupt."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def note(self, text: str) -> None:
        if not self.silent:
            self.console.print(_indented(text))

    def warn(self, text: str) -> None:
        if ranks.current().index == 0:
            self.console.print(f"[yellow]Warning:[/] {_indented(text)}")

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
