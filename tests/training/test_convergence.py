"""A training that ended too early says so, in its run and beside its figures; one that did not says nothing."""

from __future__ import annotations

import json
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


def test_the_last_stage_is_judged_by_the_fall_of_all() -> None:
    """Its own first epoch starts from what another has learned."""
    losses = [3.0, 1.0, 0.5, 0.30, 0.28, 0.26, 0.24]
    assert still_falling(table(losses, stages=[3])) is None
    assert still_falling(table(losses[3:])) == pytest.approx(0.04 / 0.06, abs=1e-4)
    assert still_falling(table([3.0, 1.0, 2.9, 2.0, 1.2, 0.4], stages=[2])) == pytest.approx(1.6 / 2.6, abs=1e-4)


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
