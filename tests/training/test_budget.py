"""How long and how fast a student is trained where the settings do not say so, and what its run records of that."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ROWS, contents, examples, make_folder, refused, refused_and_kept, settings, with_cache
from training_helpers import new_name

from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import TrainSettings, load_settings
from ensemble_distill.training import budget, loop
from ensemble_distill.training.budget import default_epochs
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train
from ensemble_distill.workspace import Workspace
from ensemble_distill.workspace.training import settled_training

BARE: dict[str, Any] = {"train.epochs": None, "train.lr": None}  # what the folder's file says is taken out


@pytest.mark.parametrize(
    ("rows", "batch_size", "effort", "epochs"),
    [
        (1_000, 128, "default", 429),  # of 7 steps: 3,003
        (1_000, 64, "default", 200),  # of 15 steps: 3,000
        (5_000, 128, "default", 77),  # of 39 steps
        (19_200, 128, "default", 20),  # of 150 steps: 3,000
        (50_000, 128, "default", 20),
        (1_281_167, 128, "default", 20),
        (300, 128, "default", 1_000),  # of 2 steps: no more than so many
        (1, 128, "default", 1_000),  # a step, though no whole batch
        (1_000, 128, "quick", 108),  # 107.1
        (50_000, 128, "quick", 5),
        (300, 128, "quick", 250),
        (1_000, 64, "patient", 800),
        (50_000, 128, "patient", 80),
        (300, 128, "patient", 4_000),
    ],
)
def test_few_rows_get_more_epochs_and_many_twenty(rows: int, batch_size: int, effort: str, epochs: int) -> None:
    assert default_epochs(rows, batch_size, effort) == epochs


def test_help_and_efforts_say_what_is_defined() -> None:
    fields = TrainSettings.model_fields
    for said in (f"{budget.STEPS:,} steps", f"between {budget.FEWEST} and {budget.MOST:,}"):
        assert said in str(fields["epochs"].description)
    assert f"default {budget.RATE:g}, or {budget.RATE * budget.GENTLE:g}" in str(fields["lr"].description)
    for effort in budget.EFFORTS:
        assert TrainSettings(effort=effort).effort == effort


# --- what a run gets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache; runs of this module go there under names of their own."""
    return with_cache(make_folder(tmp_path_factory.mktemp("budget") / "tiny"))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs, of the five steps that the folder's rows make, are enough."""
    monkeypatch.setattr(budget, "STEPS", 10)
    monkeypatch.setattr(budget, "FEWEST", 1)


@pytest.mark.usefixtures("brief")
def test_what_a_default_came_to_is_recorded_and_replays(cached: Path) -> None:
    name = new_name()
    run, progress = cached / "runs" / name, Silent()
    assert train(settings(cached, {**BARE, "output.name": name}), progress=progress).fresh
    assert "2 epochs of 5 steps." in progress.notes
    kept = tomllib.loads((run / "args.toml").read_text())["train"]
    assert (kept["epochs"], kept["lr"], kept["effort"]) == (2, 1e-3, "default")
    assert not train(settings(cached, {**BARE, "output.name": name})).fresh
    assert not train(settings(cached, {"train.epochs": 2, "train.lr": 1e-3, "output.name": name})).fresh
    timed = ["summary.csv", "checkpoint.safetensors"]  # which have seconds
    wanted = contents(run, timed)
    train(load_settings(run / "args.toml"), overwrite=True)
    assert contents(run, timed) == wanted


@pytest.mark.usefixtures("brief")
def test_a_run_of_another_length_is_refused_by_its_key(cached: Path) -> None:
    name = new_name()
    asked = {**BARE, "output.name": name}
    train(settings(cached, {**asked, "train.epochs": 3}))  # as a version with another default made it
    with refused_and_kept(cached / "runs" / name, "train.epochs = 3", "but now it is 2", "--overwrite"):
        train(settings(cached, asked))
    with refused_and_kept(cached / "runs" / name, "train.epochs = 3", "but now it is 8", "--overwrite"):
        train(settings(cached, {**asked, "train.effort": "patient"}))


@pytest.mark.usefixtures("brief")
def test_an_effort_is_recorded_as_the_epochs_it_came_to(cached: Path) -> None:
    name = new_name()
    asked = {**BARE, "train.effort": "quick", "output.name": name}
    train(settings(cached, asked))
    kept = tomllib.loads((cached / "runs" / name / "args.toml").read_text())["train"]
    assert (kept["epochs"], kept["effort"]) == (1, "default")
    assert not train(settings(cached, asked)).fresh


def test_an_effort_beside_epochs_is_refused(cached: Path) -> None:
    with refused("train.effort is 'patient'", "train.epochs is 3", "--set train.epochs="):
        settings(cached, {"train.effort": "patient"})
    assert settings(cached, {"train.effort": "patient", "train.epochs": None}).train.effort == "patient"
    assert settings(cached, {"train.effort": "default"}).train.epochs == 3


def test_the_rate_follows_from_the_start() -> None:
    def rate(**given: Any) -> float:
        values = {"epochs": 1, **{key: value for key, value in given.items() if key == "lr"}}
        return budget.settled(TrainSettings(**values), lambda: 0, given.get("near", False)).lr

    assert (rate(), rate(near=True)) == (1e-3, 1e-4)
    assert (rate(lr=0.5), rate(lr=0.5, near=True)) == (0.5, 0.5)


def test_a_start_from_all_members_is_trained_gently(cached: Path) -> None:
    def rate(init: Any, **student: Any) -> float:
        asked = {"train.lr": None, "student.init": init, **{f"student.{key}": of for key, of in student.items()}}
        return settled_training(Workspace(settings(cached, asked))).lr

    assert [rate(init) for init in (None, "member-0", ["member-0"], ["member-0", "member-1"])] == [1e-3] * 4
    assert rate(["member-*"]) == rate(["member-0"], compress=0.5) == rate(["member-0"], heads="last-stage") == 1e-4


def test_the_rows_that_count_are_those_that_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 rows with labels and 24 without, in batches of 8: 5 or 8 steps an epoch."""
    folder = make_folder(tmp_path / "tiny", rows={**ROWS, "transfer": 24})
    np.savez(folder / "data/transfer.npz", x=examples(24, 5)[0])
    monkeypatch.setattr(budget, "STEPS", 40)
    monkeypatch.setattr(budget, "FEWEST", 1)

    def epochs(**given: Any) -> int:
        return settled_training(Workspace(settings(folder, {**BARE, **given}))).epochs

    for _ in range(2):  # as the data says, and then as the cache does
        assert epochs() == 5
        assert epochs(**{"train.method": "supervised"}) == 8
        assert epochs(**{"data.transfer": None}) == 8
        cache_logits(settings(folder))
    (folder / "data/train.npz").unlink()
    assert epochs() == 5


# --- very many epochs ---------------------------------------------------------------------------------------------


def test_of_very_many_epochs_some_are_validated_and_saved(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"train.epochs": 5}
    whole = train(settings(cached, {**asked, "output.name": new_name()})).folder
    monkeypatch.setattr(loop, "KEPT", 2)  # every third, and the last
    rare = train(settings(cached, {**asked, "output.name": new_name()})).folder
    assert (rare / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    tables = [list(csv.DictReader((run / "summary.csv").read_text().splitlines())) for run in (whole, rare)]
    assert [[row["epoch"] for row in table] for table in tables] == [["1", "2", "3", "4", "5"]] * 2
    assert tables[0][3]["train_loss"] == tables[1][3]["train_loss"]
    full, some = ([row["validation_loss"] for row in table] for table in tables)
    assert some == ["", "", full[2], "", full[4]]


def test_a_training_of_very_many_epochs_goes_on_from_a_saved_one(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "KEPT", 2)
    names = [new_name() for _ in range(2)]
    whole, stopped = (settings(cached, {"train.epochs": 5, "output.name": name}) for name in names)
    wanted = train(whole).folder

    class Stops(Silent):
        unit, steps = "", 0

        def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
            self.unit = unit

        def advance(self, count: int = 1, facts: object = None) -> None:
            self.steps += count if self.unit == "steps" else 0
            if self.steps == 22:  # in the fifth epoch
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=Stops())
    report = train(stopped)
    assert report.resumed_at == 15
    for name in ("student.safetensors", "config.json"):
        assert (report.folder / name).read_bytes() == (wanted / name).read_bytes()
