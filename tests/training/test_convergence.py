"""A training that ended too early says so, in its run and beside its figures; one that did not says nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny import settings

from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.training.convergence import still_falling
from ensemble_distill.training.loop import KEPT
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

Table = list[dict[str, Any]]


def table(train: Sequence[float], validation: Sequence[float] | None = None, stages: Sequence[int] = ()) -> Table:
    """A row an epoch; `stages` are the epochs at which another stage begins."""
    rows: Table = [
        {"stage": f"stage {sum(at <= epoch for at in stages)}", "train_loss": loss} for epoch, loss in enumerate(train)
    ]
    for row, loss in zip(rows, validation or (), strict=False):
        row["validation_loss"] = loss
    return rows


def test_a_loss_that_falls_evenly_is_half_done_in_the_middle() -> None:
    assert still_falling(table(np.linspace(5, 1, 101).tolist())) == pytest.approx(0.5)
    assert still_falling(table(np.linspace(-5, -25, 11).tolist())) == pytest.approx(0.5)  # likelihoods have no 0
    assert still_falling(table([2.0, 1.0])) == 1


def test_what_was_learned_in_time_is_silent() -> None:
    assert still_falling(table((np.exp(-np.arange(40.0)) + 0.1).tolist())) is None
    noise = np.random.default_rng(0).normal(scale=0.02, size=40)
    assert still_falling(table((1 / (1 + np.arange(40.0)) + noise).tolist())) is None
    assert still_falling(table([1.0, 1.5, 2.0, 1.2])) is None  # it rose
    assert still_falling(table([1.0])) is None
    assert still_falling([]) is None


def test_a_student_that_learns_its_rows_by_heart_needs_no_more_epochs() -> None:
    falling = np.linspace(5, 1, 10).tolist()
    assert still_falling(table(falling, np.linspace(2, 1, 10).tolist()))
    assert still_falling(table(falling, [2.0, *np.linspace(1, 1.5, 9).tolist()])) is None


@pytest.mark.parametrize("epochs", [100, 150, 200, 429])
def test_of_epochs_that_are_not_all_validated_those_near_the_half_are_asked(epochs: int) -> None:
    every = math.ceil(epochs / KEPT)
    rising = table(np.linspace(5, 1, epochs).tolist(), np.linspace(1, 2, epochs).tolist())
    falling = table(np.linspace(5, 1, epochs).tolist(), np.linspace(2, 1, epochs).tolist())
    for rows in (rising, falling):
        for row in rows[:-1]:
            if (rows.index(row) + 1) % every:
                del row["validation_loss"]
    assert still_falling(rising) is None
    assert still_falling(falling) == pytest.approx(0.5, abs=0.01)


def test_the_last_stage_is_judged_by_its_own_fall() -> None:
    """Its loss is another's: that of pooled predictions has no floor where that of each head has one."""
    heads = [0.20, 0.15, 0.11, 0.08]
    assert still_falling(table([0.05, 0.03, 0.03, *heads], stages=[3])) == pytest.approx(0.07 / 0.12, abs=1e-4)
    assert still_falling(table([3.0, 1.0, *heads], stages=[2])) == pytest.approx(0.07 / 0.12, abs=1e-4)
    assert still_falling(table([0.06, 0.03, 0.0585, *[0.056] * 6, *[0.0558] * 6], stages=[2])) is None


def test_a_stage_that_can_hardly_fall_is_silent() -> None:
    """As that of heads which were solved for."""
    assert still_falling(table([0.0100, *[0.00995] * 5, *[0.00990] * 5])) is None
    assert still_falling(table([0.0100, *[0.00980] * 5, *[0.00950] * 5])) is not None


def test_a_short_training_says_so_in_its_run_and_beside_its_figures(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path / "folder")
    short = settings(folder, {"train.method": "kd", "train.epochs": 2, "train.lr": 3e-3, "method.closed-form": False})
    cache_logits(short)
    progress = Silent()
    report = train(short, progress=progress)
    run = Run.open(report.folder)
    share = run.provenance.still_falling
    assert share is not None
    assert 0.1 <= share <= 1
    assert report.still_falling == share
    told = [warning for warning in progress.warnings if report.folder.name in warning]
    assert len(told) == 1
    assert f"{share:.0%}" in told[0]
    assert "train.epochs" in told[0]
    assert evaluate(short).to_json()["still_falling"] == share
    record = json.loads(run.config.content())
    assert StudentConfig.from_json(record).provenance == run.provenance
    del record["still_falling"]  # as in runs before
    assert StudentConfig.from_json(record).provenance.still_falling is None
