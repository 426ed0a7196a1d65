"""Runs of names of their own in a folder that many tests train in, what their summaries say, and what is refused."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

from tiny import contents, refused, settings

from ensemble_distill.training.report import TrainReport
from ensemble_distill.workflows.train import train

RUN = "runs/hydra-s0"

_numbers = itertools.count()


def new_name() -> str:
    """Of a run that no other test has made."""
    return f"run-{next(_numbers)}"


def trained(folder: Path, **more: Any) -> TrainReport:
    """A new run with other settings, written train__lr=0.1 for train.lr."""
    overrides = {key.replace("__", ".").replace("_", "-"): value for key, value in more.items()}
    return train(settings(folder, {"output.name": new_name(), **overrides}))


def summary(report: TrainReport) -> list[dict[str, str]]:
    with (report.folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def refuses(folder: Path, more: dict[str, Any], *said: str) -> None:
    """A new run is refused with these words, and leaves nothing behind."""
    cache = contents(folder / "cache")
    with refused(*said):
        train(settings(folder, {"output.name": "new", **more}))
    assert contents(folder / "cache") == cache
    assert not (folder / "runs/new/student.safetensors").exists()
