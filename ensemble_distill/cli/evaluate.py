"""The command `edistill evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ensemble_distill.cli import completing, render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import AlsoJson, Format, Split, Style, Trust, refuse_two_formats
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.comparison import Comparison
from ensemble_distill.evaluation.remarks import remarks
from ensemble_distill.evaluation.tables import tables
from ensemble_distill.runtime.words import shell
from ensemble_distill.settings import Settings


def register(app: typer.Typer) -> None:
    @command(app, "evaluate", ["train.device", "train.workers", "limit"])
    def evaluate(
        settings: Settings,
        runs: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="RUN",
                help="Runs of one ensemble, exported files, or a chain, by folder or name; the latest by default.",
                show_default=False,
                autocompletion=completing.runs,
            ),
        ] = None,
        split: Split = None,
        shifts: Annotated[
            bool, typer.Option("--shifts", help="Also evaluate on distorted rows, on which the teachers are run.")
        ] = False,
        report: Annotated[
            Path | None, typer.Option(help="Write a report of one run to this .html.", show_default=False)
        ] = None,
        trust: Trust = False,
        style: Format = Style.table,
        json: AlsoJson = False,
    ) -> None:
        """Compare a run with its ensemble: quality, uncertainty, diversity, OOD detection and cost.

        Several runs of one ensemble stand side by side, and so do the generations of a chain. An exported file, .onnx,
        .pt2 or .safetensors, is asked itself, beside the run that it stands in.

        Example: edistill evaluate kd-s0 hydra-s0 --format markdown
        """
        from ensemble_distill.evaluation.exported import with_their_runs
        from ensemble_distill.workflows import evaluate as workflow

        refuse_two_formats(json, style, Style.table)
        with render.Shown() as progress:
            if runs is not None and report is None:
                runs = with_their_runs(Path(settings.output.runs), runs, progress.note)
            if runs is None or len(runs) < 2:
                run = runs[0] if runs else None
                one = workflow.evaluate(
                    settings, run, split=split, shifts=shifts, report=report, trust=trust, progress=progress
                )
                found, document = Comparison((one,)), one.to_json
            else:
                if report is not None:
                    refuse_report_of_several(runs)
                found = workflow.evaluate_together(
                    settings, runs, split=split, shifts=shifts, trust=trust, progress=progress
                )
                document = found.to_json
        if json or style is Style.json:
            render.document(document())
        else:
            show(found, style)
        if report is not None:
            render.message(f"{report} is written, and what its figures draw beside it, {report.with_suffix('.json')}.")


def refuse_report_of_several(runs: Sequence[str]) -> None:
    """Raise EdistillError, since a report shows one student."""
    raise EdistillError(
        f"--report shows one student, and {', '.join(runs)} are {len(runs)}. Write a page for each, or compare them: "
        f"edistill compare {' '.join(map(shell, runs))} --picture worth.svg"
    )


def show(found: Comparison, style: Style) -> None:
    """Show the tables of an evaluation, and its remarks."""
    if style is Style.csv:
        cells = [
            (line.section, line.figure, model, value)
            for line in found.lines()
            for model, value in zip(line.models, line.values, strict=True)
        ]
        render.csv(("section", "figure", "model", "value"), cells)
        return
    grid = render.markdown if style is Style.markdown else render.grid
    for table in tables(found):
        grid(table.title, table.columns, table.sections, table.caption)
    for run in found.runs:
        for remark in remarks(run):
            render.message(remark)
