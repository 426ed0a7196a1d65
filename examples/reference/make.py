"""Write the command reference beside this file, from the `--help` of each command.

python examples/reference/make.py
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo

from ensemble_distill.cli.app import SUMMARIES
from ensemble_distill.cli.panels import OTHERS, PANELS

PLACE = Path(__file__).with_name("README.md")
HEAD = """# Every command and its options

What the `--help` of each command says, written by `python examples/reference/make.py`. The examples run in the folder
that `edistill quickstart digits` makes. Options that stand for a key of `edistill.toml` override it;
`edistill settings` lists all keys, and `--set` reaches each.

Tab completes commands, options, methods, runs, splits and keys, once `edistill --install-completion` has told your
shell so (`--show-completion` prints what it would add). A name that nobody knows is answered with the one most like it.
"""


def reference() -> str:
    """The whole document."""
    rows = "\n".join(f"| [{name}](#edistill-{name}) | {_plain(what)} |" for name, what in SUMMARIES.items())
    parts = [HEAD, f"| command | |\n|---|---|\n{rows}\n"]
    parts += [part for name in SUMMARIES for part in _command(name)]
    return "\n".join(parts)


def _command(name: str) -> Iterator[str]:
    """The section of a command, from the signature of its function, as in typer's help."""
    holder = typer.Typer()
    importlib.import_module(f"ensemble_distill.cli.{name.replace('-', '_')}").register(holder)
    function: Any = holder.registered_commands[0].callback
    told = [part.strip() for part in re.split(r"\n+", function.__doc__) if part.strip()]
    examples = [line.removeprefix("Example: ") for line in told if line.startswith("Example: ")]
    yield f"## edistill {name}\n"
    yield "\n\n".join(_plain(line) for line in told if not line.startswith("Example: ")) + "\n"
    yield "\n".join(["```console", *examples, "```", ""])
    given = [Parameter(one) for one in inspect.signature(function).parameters.values()]
    for panel in ("argument", *PANELS):
        if some := [one for one in given if one.panel == panel]:
            rows = "\n".join(f"| {one.named} | {_plain(one.told)} |" for one in some)
            yield f"| {panel.lower()} | |\n|---|---|\n{rows}\n"


class Parameter:
    """An argument or an option."""

    def __init__(self, of: inspect.Parameter) -> None:
        self.name, self.default = of.name, of.default
        self.kind, self.info = get_args(of.annotation)[:2]
        self.argument = isinstance(self.info, ArgumentInfo)

    @property
    def panel(self) -> str:
        return "argument" if self.argument else self.info.rich_help_panel or OTHERS

    @property
    def named(self) -> str:
        """The names with the value: `--batch-size N`, `-b`."""
        if self.argument:
            return f"`{self.info.metavar or self.name.upper()}`"
        written = [self.info.default, *(self.info.param_decls or ())]  # Option(…) has its first name in either
        names = [name for one in written if isinstance(one, str) for name in one.split("/")]
        long, *others = sorted(names or [f"--{self.name.replace('_', '-')}"], key=lambda name: name[:2] != "--")
        return ", ".join(f"`{name}`" for name in [f"{long}{self.value}", *others])

    @property
    def value(self) -> str:
        kinds = [kind for kind in get_args(self.kind) or (self.kind,) if kind is not type(None)]
        kind = kinds[0]
        if self.info.metavar or kind is bool:
            return f" {self.info.metavar}" if self.info.metavar else ""
        if isinstance(kind, type) and issubclass(kind, Enum):
            return " " + "\\|".join(str(one.value) for one in kind)
        return " " + {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")

    @property
    def told(self) -> str:
        chosen = isinstance(self.default, Enum)
        return f"{self.info.help}{f' Default {self.default.value}.' if chosen else ''}"


def _plain(text: str) -> str:
    """The text escaped so that Markdown shows it literally in a table cell."""
    return re.sub(r"[*<>|\[\]]", r"\\\g<0>", re.sub(r"\s+", " ", text).strip())


def main() -> None:
    PLACE.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
