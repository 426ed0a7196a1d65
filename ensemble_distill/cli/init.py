"""The command `edistill init`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json, Trust


def register(app: typer.Typer) -> None:
    @command(app, "init", settings=False)
    def init(
        folder: Annotated[Path, typer.Argument(help="A folder of checkpoints, with or without data.")],
        into: Annotated[
            Path, typer.Option("-o", "--output", help="The folder to write edistill.toml to; default here.")
        ] = Path(),
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing edistill.toml.")] = False,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Report what a folder of checkpoints holds and write an edistill.toml for it.

        Where only you know the modules behind the weights, a model.py with their tensors is written too, and the lines
        to fill in are named. No code of the folder runs.

        Example: edistill init teachers -o mine
        """
        from ensemble_distill.workflows.init import init

        with render.Shown() as progress:
            report = init(folder, into, overwrite=overwrite, trust=trust, progress=progress)
        if json:
            render.document(asdict(report))
            return
        rows = [
            [
                str(one["name"]),
                one["kind"] or "–",
                one["model"] or "–",
                "–" if one["parameters"] is None else f"{one['parameters']:,}",
                "no" if one["problem"] else "yes",
            ]
            for one in report.members
        ]
        columns = ["member", "kind", "model", "parameters", "loads"]
        render.table(f"members in {render.near(str(report.teachers))}", columns, rows)
        if report.splits:
            render.table(
                "data",
                ["split", "rows", "holds", "labels"],
                [
                    [name, "–", "not read yet", "–"]
                    if "problem" in one
                    else [name, f"{one['rows']:,}", one["holds"], "yes" if one["labels"] else "no"]
                    for name, one in report.splits.items()
                ],
            )
        for path in report.files:
            render.text(f"{render.near(str(path))} is written.\n")
        for problem in report.mend:
            render.text(f"fix: {render.near(problem)}\n")
        for place, line, why in report.fill:
            render.text(f"fill in: {render.near(place)}, line {line}: {why}\n")
        render.text(f"next: {report.next}\n")
