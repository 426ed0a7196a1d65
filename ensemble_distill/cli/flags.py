"""Arguments and options shared by several commands, and the formats of results."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ensemble_distill.cli import completing
from ensemble_distill.errors import EdistillError


class Style(StrEnum):
    """The formats in which `evaluate` and `compare` write their results."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run's folder or name; the latest by default.",
        show_default=False,
        autocompletion=completing.runs,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Which split; default test, or validation if there is none.",
        show_default=False,
        autocompletion=completing.splits,
    ),
]
Format = Annotated[Style, typer.Option("--format", help="How the result is written.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
AlsoJson = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress and notes, but not warnings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-checkpoints",
        help="Unpickle checkpoints that hold arbitrary Python objects, and run code named by runs that are not yours.",
    ),
]
Config = Annotated[Path | None, typer.Option("-c", "--config", help="The settings file; default edistill.toml here.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting by its TOML name; KEY= unsets it.",
        autocompletion=completing.keys,
    ),
]


def refuse_two_formats(json: bool, style: str | None, default: str | None = None) -> None:
    """Raise EdistillError if `--json` contradicts a `--format`."""
    if json and style not in (default, "json"):
        raise EdistillError(f"--json and --format {style} are two formats for one result. Leave one of them out.")
