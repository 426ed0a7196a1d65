"""The only code that prints: results to stdout, progress and messages to stderr.

Names come from files, users and data, so everything shown passes through `harmless`, and none of it can control the
terminal. Characters that stdout's encoding lacks are written as escapes.
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

TELL_FIRST = 2.0  # seconds until the first line of progress without a terminal
TELL_EVERY = 60.0  # minimum seconds between further lines
LINES = 50  # over the whole time so far, which makes later lines rarer
REDRAW = 0.2  # seconds between updates of the text beside a bar
WIDE = 240  # a pipe has no width to fit, and a cut table is useless


_result: TextIO | None = None  # stdout as it was when the command began
_quiet = False  # whether progress and notes are hidden


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # re-raises the error that rich is handling; rich itself would end the process


def _console(stderr: bool) -> Console:
    file = sys.stderr if stderr else _result or sys.stdout
    console = _Console(file=file, soft_wrap=True, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


# --- the streams ------------------------------------------------------------------------------------------------


@contextmanager
def result_apart(quiet: bool = False) -> Iterator[None]:
    """Redirect what users' modules print, and warnings, to stderr in the block, so that stdout is the result alone.

    Args:
        quiet: hide progress and notes; warnings and errors stay.
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
    """If `silent`, show nothing in the block, since another process reports; yields a function that shows errors
    anyway."""
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
    """Make both streams accept any text, and replace those that were closed when the program started."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115, stays open as long as the process runs
        with suppress(AttributeError):  # a Python caller may have put any file there
            getattr(sys, name).reconfigure(errors="backslashreplace")


def hush() -> None:
    """Discard the rest of stdout silently, after its reader has gone."""
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
    """Show a warning of a library or of a user's code in one line."""
    warn(f"{category.__name__}: {first_line(message)} ({Path(filename).name}, line {lineno})")


# --- messages ---------------------------------------------------------------------------------------------------


def near(text: str) -> str:
    """The text with paths below the working folder made relative."""
    try:
        here = str(Path.cwd()) + os.sep
    except OSError:  # the working folder no longer exists
        return text
    return text.replace(here, "")


def shown(text: str) -> str:
    """The text escaped so that rich prints it unchanged, and without terminal control characters."""
    return escape(harmless(text))


def _indented(text: str) -> str:
    """The text with all lines but the first indented, so that no line from a name can pass for a message of its own."""
    return shown(near(text)).replace("\n", "\n  ")


def fail(text: str) -> None:
    """Print an error, and its remedy after a blank line."""
    wrong, remedy = parted(text)
    console = _console(stderr=True)
    console.print(f"[bold red]Error:[/] {_indented(wrong)}")
    if remedy:
        console.print(f"\n[bold cyan]hint:[/] {_indented(remedy)}")


def warn(text: str) -> None:
    _console(stderr=True).print(f"[yellow]Warning:[/] {_indented(text)}")


def message(text: str) -> None:
    """Print a message beside a result, unless `--quiet` was given."""
    if not _quiet:
        _console(stderr=True).print(_indented(text))


def traceback(text: str) -> None:
    """Print a traceback for a bug report."""
    _console(stderr=True).print(shown(text), end="")


# --- results ----------------------------------------------------------------------------------------------------


def text(content: str) -> None:
    """Print a result that is already text."""
    out = _result or sys.stdout
    out.write(harmless(content))
    out.flush()


def document(record: Any) -> None:
    """Print exactly one JSON document with the exact names; characters that stdout lacks become JSON escapes."""
    out = _result or sys.stdout
    utf8 = (out.encoding or "ascii").lower().replace("-", "") == "utf8"
    text(json_text(record, only_ascii=not utf8, default=str))


def _cell(text: str) -> str:
    """The text of a table cell in one line, with line feeds and tabs escaped."""
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
    """Print a table with titled sections."""
    drawn = _columns(None, columns)
    for name, rows in sections.items():
        drawn.add_row(f"[bold]{_cell(name)}[/]")
        for row in rows:
            drawn.add_row(*map(_cell, row))
        drawn.add_section()
    console = _console(stderr=False)
    console.print(f"[bold]{_cell(title)}[/]")  # outside the table, which would wrap them to its width
    console.print(drawn)
    if caption is not None:
        console.print("\n".join(map(_cell, caption)))


def markdown(title: str, columns: Sequence[str], sections: Sections, caption: Lines | None = None) -> None:
    """Print a table with titled sections as Markdown; see `grid`."""
    lines = [_piped(map(plain_markdown, columns)), _piped(["---", *["---:"] * (len(columns) - 1)])]
    for name, rows in sections.items():
        lines += [_piped([f"**{plain_markdown(name)}**", *[""] * (len(columns) - 1)])]
        lines += [_piped(map(plain_markdown, row)) for row in rows]
    told = [] if caption is None else ["  \n".join(map(plain_markdown, caption))]
    text("\n\n".join([f"**{plain_markdown(title)}**", "\n".join(lines), *told]) + "\n\n")


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print values with all digits, empty where there are none; no cell is a formula to a spreadsheet."""
    file = io.StringIO()
    writer = csv_writer(file, lineterminator="\n")
    writer.writerows([harmless_cell(cell) for cell in row] for row in [columns, *rows])
    text(file.getvalue())


def facts(title: str, pairs: Mapping[str, Any]) -> None:
    """Print names and values, one per line, with nested records indented."""
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
    """Print what a path is: its title, a line for each fact, a table of at most `ROWS` rows, and the next command."""
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
    """Progress on stderr: a bar on a terminal, elsewhere a line now and then; only the first of several processes shows
    it.

    With `--quiet` only warnings remain.
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
        if done and task not in self.shown:  # otherwise another task only interrupted it
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
            # in a log file: soon, then each minute, and in long work less and less often
            self.told, self.pause = now, max(TELL_EVERY, (now - self.begun) / LINES)
            self.note(f"{self.name}: {self.pace.done:,} of {self.pace.total:,} {self.pace.unit}, {self.pace(now)}")

    def finish(self) -> None:
        if self.bar is None:
            ended = self._ended(time.monotonic())
            self.note(f"{self.name}: {self.pace.total:,} {self.pace.unit}{ended and f' in {ended}'}")
        self._leave()

    def _ended(self, now: float) -> str:
        """The time it took, if it is worth mentioning."""
        return duration(now - self.begun) if now - self.begun >= TELL_FIRST else ""

    def _leave(self) -> None:
        """Release the terminal: at the end, before another task, and after an error or an interrupt."""
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
