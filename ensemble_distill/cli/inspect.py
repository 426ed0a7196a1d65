"""The command `edistill inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json, Trust
from ensemble_distill.cli.inspected import sheet_of


def register(app: typer.Typer) -> None:
    @command(app, "inspect", settings=False, long=False)
    def inspect(
        path: Annotated[
            Path, typer.Argument(help="A run, a cache, an exported file, teachers, data, or a folder of them.")
        ],
        trust: Trust = False,
        json: Json = False,
        config_file: Annotated[
            Path | None,
            typer.Option(
                "-c", "--config", help="Settings that say how to build bare checkpoints; default edistill.toml here."
            ),
        ] = None,
    ) -> None:
        """Report what a path is and what it holds.

        With --json it tells everything that is recorded, else what a person asks.

        Example: edistill inspect runs/hydra-s0

        Example: edistill inspect runs/hydra-s0/export/model.onnx
        """
        from ensemble_distill.settings import settings_here
        from ensemble_distill.workflows.inspect import inspect

        settings = settings_here(config_file)
        record = inspect(path, settings, trust=trust)
        if json:
            render.document(record)
        else:
            own = settings is not None and Path(settings.teachers.path).resolve() == path.resolve()
            try:
                shown = sheet_of(str(path), record, own_teachers=own)
            except (LookupError, TypeError, ValueError, AttributeError):  # an exported file written by someone else
                render.facts(str(path), record)
            else:
                render.sheet(shown)
