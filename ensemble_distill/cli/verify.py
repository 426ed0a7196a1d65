"""`edistill verify`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import Json, command
from ensemble_distill.errors import EdistillError


def register(app: typer.Typer) -> None:
    @command(app, "verify", settings=False)
    def verify(
        cache: Annotated[
            Path | None, typer.Argument(help="A cache's folder; default output.cache.", show_default=False)
        ] = None,
        json: Json = False,
    ) -> None:
        """Compute every checksum of a cache again.

        Example: edistill verify cache
        """
        from ensemble_distill.settings import FILE_NAME, load_settings
        from ensemble_distill.workflows.verify import verify

        if cache is None:
            cache = Path(load_settings().output.cache) if Path(FILE_NAME).is_file() else Path("cache")
        report = verify(cache)
        if json:
            render.document(asdict(report))
        elif not report.problems:
            left = f"; unfinished: {', '.join(report.unfinished)}" if report.unfinished else ""
            render.text(f"{render.near(str(cache))}: {report.records} records, all whole{left}\n")
        if report.problems:
            raise EdistillError(
                f"{cache} is damaged: {'; '.join(report.problems)}. Delete those files and run edistill cache-logits "
                "to compute them again."
            )
