"""The command `edistill calibrate`."""

from __future__ import annotations

from typing import Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json, RunArgument, Trust
from ensemble_distill.runtime.numbers import number
from ensemble_distill.settings import Settings

SHOWN = (
    "model_uncertainty_ratio",
    "model_uncertainty_l1",
    "model_uncertainty_spearman",
    "diversity_explained",
    "mean_kl",
)
CAPTION = (
    "after: each half is corrected by a fit on the other half, so the figures should carry over to new rows.\n"
    "Calibration corrects how much the heads disagree, not what they disagree about: where that differs from the\n"
    "members' disagreement, it lowers the diversity explained."
)


def register(app: typer.Typer) -> None:
    @command(app, "calibrate", ["train.device", "train.workers", "limit"])
    def calibrate(
        settings: Settings,
        run: RunArgument = None,
        split: Annotated[
            str | None,
            typer.Option(
                help="Rows that no member was trained on; default calibration, or validation if there is none.",
                show_default=False,
            ),
        ] = None,
        by_row: Annotated[
            bool,
            typer.Option(
                "--by-row",
                help="Also let heads disagree more where the student is unsure, if it helps; OOD rows may "
                "stand out less.",
            ),
        ] = False,
        remove: Annotated[bool, typer.Option("--remove", help="Remove the run's calibration.")] = False,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Match a run's uncertainty to its ensemble's, on rows that no member was trained on.

        Evaluate, export and predict apply it from then on; export again what was exported before.

        Example: edistill calibrate hydra-s0
        """
        from ensemble_distill.workflows.calibrate import calibrate

        with render.Shown() as progress:
            report = calibrate(settings, run, split=split, by_row=by_row, remove=remove, trust=trust, progress=progress)
        if json:
            render.document(report.to_json())
        elif report.calibration is None:
            render.message(f"{report.folder} is uncalibrated again, as it was trained.")
        else:
            told = ", ".join(
                f"{name} {value:.3g}" for name, value in report.calibration.to_json().items() if value != 1
            )
            rows = [
                [name.replace("_", " "), number(report.before[name]), number(report.after[name])]
                for name in SHOWN
                if report.before[name] is not None
            ]
            where = f"{report.folder.name} on {report.rows:,} {report.counted} of {report.split}"
            render.table(
                f"{where}: {told or 'nothing to correct'}",
                ["", "before", "after"],
                rows,
            )
            for line in CAPTION.splitlines():
                render.message(line)
        if report.stale and not json:
            files = ", ".join(str(file) for file in report.stale)
            render.message(f"{files}: exported before. Export again: {report.export_again}")
