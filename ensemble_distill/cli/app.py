"""`edistill`: all commands, each of which is imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ensemble_distill import __version__
from ensemble_distill.cli import interrupts, render, usage
from ensemble_distill.cli.statuses import MISTAKE, exit_statuses
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.cores import keep_to_limit
from ensemble_distill.runtime.open_files import raise_limit

# The first line of each command's own help; a test keeps the two equal. Importing the commands to read it would make
# `edistill --help` build every flag of every command.
SUMMARIES = {
    "quickstart": "Make a working folder with an ensemble of digit classifiers and distill it.",
    "init": "Report what a folder of checkpoints holds and write an edistill.toml for it.",
    "doctor": "Report what is wrong with edistill.toml and how long each command will take.",
    "cache-logits": "Run every member over the data once and cache its outputs.",
    "train": "Train a student from the cache.",
    "evaluate": "Compare a run with its ensemble: quality, uncertainty, diversity, OOD detection and cost.",
    "compare": "Compare runs with the first one, with 95 % intervals of the differences.",
    "calibrate": "Match a run's uncertainty to its ensemble's, on rows that no member was trained on.",
    "export": "Export a student, or the ensemble itself, for serving, and verify the file on real rows.",
    "predict": "Predict images or rows with an exported student, with uncertainties; an .onnx needs no torch.",
    "inspect": "Report what a path is and what it holds.",
    "verify": "Recompute every checksum of a cache, a run or a chain.",
    "methods": "List the training methods.",
    "settings": "List every key of edistill.toml with its default.",
}


def load(name: str) -> Any:
    """The command `name`, from the module of that name."""
    module = importlib.import_module(f"ensemble_distill.cli.{name.replace('-', '_')}")
    holder = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    module.register(holder)
    command = typer.main.get_command(holder)
    command.name = name
    return command


class Commands(TyperGroup):
    """Lists the commands from `SUMMARIES`, and imports only the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: TyperCommand(name, help=summary) for name, summary in SUMMARIES.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with exit_statuses():  # imports take long enough to be interrupted, and can fail
            if args[0] in SUMMARIES:
                self.commands[args[0]] = load(args[0])
            elif not ctx.resilient_parsing:  # set while a line is being completed
                raise EdistillError(usage.no_command(args[0], list(SUMMARIES)))
        return super().resolve_command(ctx, args)

    def main(self, *given: Any, **named: Any) -> Any:
        """Report typer's usage errors like all other mistakes, and signals that arrive while the line is parsed.

        For such a signal, typer prints nothing, and exits as for Ctrl-C even if it was SIGTERM.
        """
        if not named.get("standalone_mode", True):
            return super().main(*given, **named)
        named["standalone_mode"] = False
        words = given[0] if given else named.get("args")
        try:
            ended = super().main(*given, **named) or 0
        except Exception as error:
            if not usage.is_usage_error(error):
                raise
            ended = MISTAKE
            if not usage.is_help(error) and not interrupts.untold() and ranks.current().index == 0:
                render.ready()
                render.fail(usage.told(error, sys.argv[1:] if words is None else words, self))
        if interrupts.untold():
            interrupts.tell()
            ended = interrupts.status()
        sys.exit(ended)


app = typer.Typer(
    name="edistill",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is a bug report, so it stays plain and complete
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distill an ensemble into one student that keeps every member's prediction, and so its uncertainty.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edistill {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    interrupts.install()
    keep_to_limit(os.environ)  # before torch is imported
    raise_limit()
    app()
