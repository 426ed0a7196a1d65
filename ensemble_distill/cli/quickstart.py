"""The command `edistill quickstart`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ensemble_distill.cli import interrupts, render
from ensemble_distill.cli.command import command


def register(app: typer.Typer) -> None:
    @command(app, "quickstart", settings=False)
    def quickstart(
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")] = Path("digits"),
        prepare_only: Annotated[
            bool, typer.Option("--prepare-only", help="Only make the folder; run nothing.")
        ] = False,
    ) -> None:
        """Make a working folder with an ensemble of digit classifiers and distill it.

        The folder is the template to edit for an ensemble of your own.

        Example: edistill quickstart digits
        """
        from ensemble_distill.workflows.quickstart import COMMANDS, prepare

        with render.Shown() as progress:
            prepare(folder, progress=progress)
        if prepare_only:
            return
        for line in COMMANDS:
            render.text(f"\n$ edistill {line}\n")
            # a process for each, as if the user had run them
            with interrupts.left_to_child():
                done = subprocess.run(
                    [sys.executable, "-m", "ensemble_distill", *line.split()], cwd=folder, check=False
                )
            if done.returncode:
                raise typer.Exit(done.returncode)
        made = sorted(path for path in (folder / "runs").rglob("*") if path.is_file() and not path.name.startswith("."))
        render.text("\n")
        render.table(
            f"what {folder}/ holds now, beside its data, teachers and cache",
            ["file", "size"],
            [[str(path), f"{path.stat().st_size / 1000:.1f} kB"] for path in made],
        )
