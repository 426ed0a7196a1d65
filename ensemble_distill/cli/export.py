"""`edistill export`"""

from __future__ import annotations

from typing import Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import Json, Trust, command
from ensemble_distill.cli.train import RunArgument
from ensemble_distill.settings import Settings


def register(app: typer.Typer) -> None:
    @command(app, "export", ["limit"])
    def export(
        settings: Settings,
        run: RunArgument = None,
        onnx: Annotated[bool, typer.Option("--onnx", help="export/model.onnx, checked against torch.")] = False,
        safetensors: Annotated[bool, typer.Option("--safetensors", help="export/model.safetensors.")] = False,
        ensemble: Annotated[
            bool, typer.Option("--ensemble", help="The members themselves: ensemble/export/model.onnx beside the runs.")
        ] = False,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Write a student, or the ensemble itself, for serving, and verify the file on real rows.

        Example: edistill export --onnx --safetensors
        """
        from ensemble_distill.workflows.export import export

        with render.Shown() as progress:
            exported = export(
                settings, run, onnx=onnx, safetensors=safetensors, ensemble=ensemble, trust=trust, progress=progress
            )
        files = exported.files
        if json:
            render.document({"files": [str(path) for path in files]})
            return
        render.table(
            "exported and verified",
            ["file", "size"],
            [[render.near(str(path)), f"{path.stat().st_size / 1e6:.2f} MB"] for path in files],
        )
