"""The command `edistill train`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json, Overwrite, Trust
from ensemble_distill.runtime.words import counted
from ensemble_distill.settings import Settings

if TYPE_CHECKING:
    from ensemble_distill.chains.generations import ChainReport

FLAGS = [
    "method",
    "epochs",
    "effort",
    "batch-size",
    "workers",
    "opt",
    "lr",
    "momentum",
    "sched",
    "decay-rate",
    "patience-epochs",
    "warmup-epochs",
    "weight-decay",
    "clip-grad",
]
FLAGS += ["generations", "teacher"]
FLAGS += ["channels-last", "torchcompile", "amp", "amp-dtype", "model-ema", "model-ema-decay", "device", "seed"]


def register(app: typer.Typer) -> None:
    flags = [f"train.{name}" for name in FLAGS] + [
        "student.share",
        "cache.decoded",
        "output.name",
        "output.log",
        "limit",
    ]

    @command(app, "train", flags, shared=True)
    def train(settings: Settings, overwrite: Overwrite = False, trust: Trust = False, json: Json = False) -> None:
        """Train a student from the cache.

        An interrupted training goes on where it was; a finished one is left as it is. With --generations the students
        are a chain: each learns from the one before.

        Example: edistill train --method hydra --seed 1 --log jsonl

        Example: edistill train --method kd
        """
        from ensemble_distill.chains.generations import train_chain
        from ensemble_distill.workflows.train import train

        if settings.train.generations is not None:
            with render.Shown() as progress:
                chain = train_chain(settings, overwrite=overwrite, trust=trust, progress=progress)
            _show_chain(chain, json)
            return
        with render.Shown() as progress:
            report = train(settings, overwrite=overwrite, trust=trust, progress=progress)
        if json:
            render.document(asdict(report))
            return
        if not report.fresh:
            render.message(f"{report.folder} is up to date.")
        took = _seconds(report.seconds, report.fresh)
        render.table(
            f"{report.folder.name}",
            ["method", "heads", "parameters", "seconds"],
            [[report.method, counted(report.heads, "head"), f"{report.parameters:,}", took]],
        )


def _show_chain(report: ChainReport, json: bool) -> None:
    if json:
        render.document(asdict(report))
        return
    if not report.fresh:
        render.message(f"{report.folder} is up to date.")
    render.table(
        f"{report.folder.name}: {counted(len(report.generations), 'generation')} by {report.method}",
        ["", "parameters", "seconds"],
        [[one.folder.name, f"{one.parameters:,}", _seconds(one.seconds, one.fresh)] for one in report.generations],
    )


def _seconds(seconds: float, fresh: bool) -> str:
    """The time that training took; "–" if nothing was left to train."""
    return f"{seconds:.1f}" if fresh else "–"
