"""What is told before a training: epochs, rows, time and bytes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tiny import make_folder, settings, with_cache

from ensemble_distill.runtime.progress import Silent
from ensemble_distill.training import forecast
from ensemble_distill.training.forward import Forward
from ensemble_distill.training.loop import Training
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_cache(make_folder(tmp_path_factory.mktemp("forecast") / "tiny", rows={"train": 40, "validation": 12}))


class Stops(Silent):
    def advance(self, count: int = 1, facts: object = None) -> None:
        raise KeyboardInterrupt


def told(folder: Path, name: str, **overrides: object) -> Silent:
    progress = Stops()
    with pytest.raises(KeyboardInterrupt):
        train(settings(folder, {"output.name": name, "method.closed-form": False, **overrides}), progress=progress)
    return progress


def test_a_training_says_how_long_and_how_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "seconds_a_batch", lambda _: (4.0, 2.0, 1.0))
    said = told(folder, "long", **{"train.epochs": 30}).notes
    # 150 steps; 30 validations of 12 rows in batches of 8; 80 rows in views, each rendered once
    seconds = 150 * 4 + 30 * 1.5 * (2 + 1) + 80 / 8 * 1
    assert seconds == 745
    (note,) = [note for note in said if note.startswith("30 epochs of 5 steps")]
    assert note.startswith("30 epochs of 5 steps, 40 rows in 2 views: about 12 min and ")


def test_a_short_one_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Training, "seconds_a_batch")
    assert "3 epochs of 5 steps." in told(folder, "short", **{"train.epochs": 3}).notes


def test_a_disk_that_is_too_small_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_bytes", lambda _: 100)
    (warning,) = [w for w in told(folder, "full", **{"train.epochs": 30}).warnings if "disk" in w]
    assert "output.runs" in warning
    assert shutil.disk_usage(folder).free > 100


def test_a_precision_that_slows_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that does not multiply bfloat16 takes ten times as long in it."""
    taken = {True: 3.0, False: 1.0}
    monkeypatch.setattr(Forward, "seconds", lambda self, *_: taken[self.settings.amp])
    mixed = {"train.epochs": 30, "train.amp": True}
    (warning,) = [w for w in told(folder, "slower", **mixed).warnings if "amp" in w]
    assert "bfloat16" in warning
    assert "3.0 times" in warning
    assert "--no-amp" in warning
    taken[True] = 1.0
    assert not [w for w in told(folder, "as-fast", **mixed).warnings if "amp" in w]
    taken[True] = 3.0
    assert not [w for w in told(folder, "float32", **{"train.epochs": 30}).warnings if "amp" in w]


def test_what_is_written_is_what_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a student whose heads are most of it: the first stage has one of them, the finished student one per member."""
    folder = make_folder(tmp_path / "tiny", 8, rows={"train": 40, "validation": 12, "test": 400})
    asked = {"output.name": "wide", "student.heads": [2000], "train.epochs": 2}
    steps = {step["command"].split()[0]: step["bytes"] for step in doctor(lambda: settings(folder, asked)).forecast}
    with_cache(folder)
    monkeypatch.setattr(forecast, "WORTH_TIMING", 0)
    monkeypatch.setattr(forecast, "bytes_told", lambda count: f"{count} bytes")
    monkeypatch.setattr(Training, "seconds_a_batch", lambda _: (4.0, 2.0, 1.0))
    progress = Silent()
    train(settings(folder, asked), progress=progress)
    (note,) = [note for note in progress.notes if note.startswith("2 epochs of 5 steps")]
    announced = int(re.findall(r"and (\d+) bytes of", note)[0])
    export(settings(folder), "wide", onnx=True)
    evaluate(settings(folder), "wide")

    def written(pattern: str) -> int:
        return sum(path.stat().st_size for path in (folder / "runs/wide").glob(pattern) if path.is_file())

    assert announced == pytest.approx(written("*"), rel=0.1)
    assert steps["train"] == pytest.approx(written("*"), rel=0.1)
    assert steps["export"] == pytest.approx(written("export/*.onnx"), rel=0.1)
    assert steps["evaluate"] == pytest.approx(written("evaluations/**/*"), rel=0.3)


@pytest.mark.thorough
def test_timing_changes_no_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timed", "untimed"):
        train(settings(folder, {"output.name": name, "train.epochs": 4}))
        monkeypatch.setattr(forecast, "WORTH_TIMING", 0)
    weights = [(folder / f"runs/{name}/student.safetensors").read_bytes() for name in ("timed", "untimed")]
    assert weights[0] == weights[1]
