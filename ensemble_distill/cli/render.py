"""The only code that prints: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from csv import writer as csv_writer
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ensemble_distill.errors import EdistillError
from ensemble_distill.workflows.words import told

TELL_EVERY = 60.0  # seconds between lines of progress where there is no terminal for a bar
WIDE = 240  # when stdout is a pipe there is no terminal to fit, and a cut table is no data


_result: TextIO | None = None  # stdout as it was when the command began


def _console(stderr: bool) -> Console:
    console = Console(file=sys.stderr if stderr else _result or sys.stdout, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


@contextmanager
def exit_statuses() -> Iterator[None]:
    """0 done, 2 the user's mistake, 130 interrupted; anything else is a bug and leaves its traceback.

    Whatever a user's own module prints meanwhile goes to stderr: stdout is the result alone.
    """
    global _result
    _result = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    except EdistillError as error:
        fail(str(error))
        raise typer.Exit(2) from None
    except OSError as error:  # a full disk, a folder that may not be written, a name too long
        fail(f"{error.filename or 'The system'}: {error.strerror or error}. What was finished before is kept.")
        raise typer.Exit(2) from None
    except SystemExit as error:
        fail(f"A module of your own ended the process (sys.exit({error.code})). Import it without running it.")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        message("Interrupted. What was finished is kept; the same command goes on from there.")
        raise typer.Exit(130) from None


def near(text: str) -> str:
    """Paths under the working folder as the user would type them."""
    return text.replace(str(Path.cwd()) + os.sep, "")


def fail(text: str) -> None:
    _console(stderr=True).print(f"[bold red]Error:[/] {escape(near(text))}")


def message(text: str) -> None:
    _console(stderr=True).print(escape(near(text)))


def text(content: str) -> None:
    """A result that is already text, byte for byte."""
    out = _result or sys.stdout
    out.write(content)
    out.flush()


def document(record: Any) -> None:
    """Exactly one JSON document."""
    text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    shown = _columns(title, columns, caption)
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    _console(stderr=False).print(shown)


def _columns(title: str | None, columns: Sequence[str], caption: str | None) -> Table:
    shown = Table(
        title=None if title is None else escape(title),
        title_justify="left",
        title_style="bold",
        caption=None if caption is None else escape(caption),
        caption_justify="left",
    )
    for index, column in enumerate(columns):
        shown.add_column(escape(column), justify="left" if index == 0 else "right", overflow="fold")
    return shown


Sections = Mapping[str, Sequence[Sequence[str]]]  # title to rows, which begin with their own label


def grid(title: str, columns: Sequence[str], sections: Sections, caption: str | None = None) -> None:
    """A table in sections, each under its title."""
    shown = _columns(None, columns, None)
    for name, rows in sections.items():
        shown.add_row(f"[bold]{escape(name)}[/]")
        for row in rows:
            shown.add_row(*(escape(cell) for cell in row))
        shown.add_section()
    console = _console(stderr=False)
    console.print(f"[bold]{escape(title)}[/]")  # outside the table, which would fold them at its own width
    console.print(shown)
    if caption is not None:
        console.print(escape(caption))


def markdown(title: str, columns: Sequence[str], sections: Sections, caption: str | None = None) -> None:
    """The same table with pipes."""
    lines = [_piped(columns), _piped(["---", *["---:"] * (len(columns) - 1)])]
    for name, rows in sections.items():
        lines += [_piped([f"**{name}**", *[""] * (len(columns) - 1)]), *map(_piped, rows)]
    said = [f"**{title}**", "\n".join(lines), *([] if caption is None else ["  \n".join(caption.splitlines())])]
    text("\n\n".join(said) + "\n\n")


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Values as they are, with every digit; nothing where there is none."""
    file = io.StringIO()
    writer = csv_writer(file, lineterminator="\n")
    writer.writerows([columns, *rows])
    text(file.getvalue())


def facts(title: str, pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line; nested records are indented."""
    console = _console(stderr=False)
    console.print(f"[bold]{escape(title)}[/]")
    for line in _lines(pairs, "  "):
        console.print(escape(line))


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


def number(value: float | None) -> str:
    """A figure for a table: four decimals, or three digits where that would show none; a dash where there is none."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def short(value: float | None) -> str:
    """A count to three digits: 12.5M."""
    if value is None:
        return "–"
    rounded, unit = float(f"{value:.3g}"), ""
    for unit in ("", "k", "M", "G", "T"):
        if abs(rounded) < 1000 or unit == "T":
            break
        rounded /= 1000
    return f"{rounded:.4g}{unit}"


class Shown:
    """Progress on stderr: bars on a terminal, a line when a task ends elsewhere."""

    def __init__(self) -> None:
        self.console = _console(stderr=True)
        self.bars: Progress | None = None
        self.task: TaskID | None = None
        self.name, self.total, self.unit, self.done, self.told = "", 0, "", 0, 0.0
        self.begun, self.before = 0.0, 0  # when the task began here, and what had been done of it by then
        self.shown: set[str] = set()

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit, self.done, self.told = task, total, unit, done, time.monotonic()
        self.begun, self.before = self.told, done
        if done and task not in self.shown:  # else it was only interrupted by another task
            self.note(f"{task}: going on at {unit[:-1]} {done:,} of {total:,}")
        self.shown.add(task)
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            self.bars.start()
            self.task = self.bars.add_task(task, total=total, completed=done, facts="")

    def advance(self, count: int = 1, facts: Mapping[str, float] | None = None) -> None:
        if self.bars is not None and self.task is not None:
            if facts:
                self.bars.update(self.task, facts=" ".join(f"{name} {value:.4f}" for name, value in facts.items()))
            self.bars.advance(self.task, count)
        else:  # a log file: say where it is, once in a while
            self.done += count
            if time.monotonic() - self.told > TELL_EVERY:
                self.told = time.monotonic()
                left = (self.told - self.begun) / (self.done - self.before) * (self.total - self.done)
                done = f"{self.done:,} of {self.total:,} {self.unit}"
                self.note(f"{self.name}: {done}, about {told(left)} left")

    def finish(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None
        else:
            self.note(f"{self.name}: {self.total:,} {self.unit}")

    def note(self, text: str) -> None:
        self.console.print(escape(text))

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]Warning:[/] {escape(text)}")

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:  # an error or an interrupt in the middle: give the terminal back
            self.bars.stop()
