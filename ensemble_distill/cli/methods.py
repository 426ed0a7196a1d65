"""The command `edistill methods`."""

from __future__ import annotations

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json


def register(app: typer.Typer) -> None:
    @command(app, "methods", settings=False, long=False)
    def methods(json: Json = False) -> None:
        """List the training methods.

        Example: edistill methods --json
        """
        from ensemble_distill.workflows.methods import methods

        listed = methods()
        if json:
            render.document(listed)
            return
        for method in listed:  # a table of seven columns would be too narrow to read
            about = dict(method)
            render.facts(f"{about.pop('name')}: {about.pop('what')}", about)
