"""The command `edistill verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Config, Json
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.words import counted


def register(app: typer.Typer) -> None:
    @command(app, "verify", settings=False)
    def verify(
        path: Annotated[
            Path | None,
            typer.Argument(help="Folder of a cache, run or chain; default output.cache.", show_default=False),
        ] = None,
        json: Json = False,
        config_file: Config = None,
    ) -> None:
        """Recompute every checksum of a cache, a run or a chain.

        Example: edistill verify cache
        """
        from ensemble_distill.settings import settings_here
        from ensemble_distill.workflows.verify import verify

        settings = settings_here(config_file)
        if path is None:
            path = Path("cache") if settings is None else Path(settings.output.cache)
        elif not path.exists() and settings is not None and (Path(settings.output.runs) / path).is_dir():
            path = Path(settings.output.runs) / path  # by name, as other commands take runs
        report = verify(path)
        if json:
            render.document(asdict(report))
        elif not report.problems:
            whole = [counted(report.students, "student")] if report.students else []
            if report.records or not whole:
                whole.append(counted(report.records, "record"))
            if report.decoded:
                whole.append(f"decoded pictures of {counted(report.decoded, 'split')}")
            left = f"; unfinished: {', '.join(report.unfinished)}" if report.unfinished else ""
            render.text(f"{render.near(str(path))}: {' and '.join(whole)}, all whole{left}\n")
        if report.problems:
            if report.remedy is not None:
                raise EdistillError(f"{path} is damaged: {'; '.join(report.problems)}. {report.remedy}")
            raise EdistillError("\n".join([f"{path} is damaged.", *report.problems]))
