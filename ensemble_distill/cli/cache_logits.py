"""The command `edistill cache-logits`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json, Overwrite, Trust
from ensemble_distill.runtime.words import bytes_told, counted
from ensemble_distill.settings import Settings


def register(app: typer.Typer) -> None:
    flags = ["cache.dtype", "cache.batch-size", "cache.decoded", "train.device", "train.workers", "limit"]

    @command(app, "cache-logits", flags, shared=True)
    def cache_logits(
        settings: Settings, overwrite: Overwrite = False, trust: Trust = False, json: Json = False
    ) -> None:
        """Run every member over the data once and cache its outputs.

        Running it again adds only what is missing: a new member, view or split, or the rest of an interrupted pass.

        Example: edistill cache-logits -j 2
        """
        from ensemble_distill.workflows.cache_logits import cache_logits

        with render.Shown() as progress:
            report = cache_logits(settings, overwrite=overwrite, trust=trust, progress=progress)
        if json:
            render.document(asdict(report))
            return
        if not report.added:
            render.message(f"{report.folder} is up to date.")
        pictures = f", {bytes_told(report.decoded)} of decoded pictures" if report.decoded else ""
        render.table(
            f"{report.folder.name}: {counted(len(report.members), 'member')}, {report.predicts}, "
            f"{report.bytes / 1e6:.1f} MB{pictures}",
            ["split", "rows", "views", *(["each member answers"] if report.answered else [])],
            [
                [name, f"{rows:,}", str(views), *([f"{report.answered.get(name, 1):.0%}"] if report.answered else [])]
                for name, (rows, views) in report.splits.items()
            ],
        )
