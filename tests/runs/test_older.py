"""What version 0.1.0 left opens, and says what it said then. `tests/data/version-0.1.0` was made by that version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import contents, settings

from ensemble_distill import load_student
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.predict import predict
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify

pytestmark = pytest.mark.thorough
OLD = Path(__file__).parents[1] / "data" / "version-0.1.0"
RUN = "runs/hydra-s0"


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, which is also where the command runs."""
    folder = Path(shutil.copytree(OLD, tmp_path / "older"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def options(older: Path) -> Settings:
    return settings(older)


def test_its_cache_is_up_to_date_and_whole(older: Path, options: Settings) -> None:
    before = contents(older / "cache")
    assert cache_logits(options).added == 0
    assert contents(older / "cache") == before
    assert verify(older / "cache").problems == []


def test_its_run_is_finished(older: Path, options: Settings) -> None:
    before = contents(older / RUN)
    assert not train(options).fresh
    assert contents(older / RUN) == before


def test_its_run_evaluates_to_the_same_figures(older: Path, options: Settings) -> None:
    then = json.loads((older / RUN / "evaluations" / "test.json").read_text())
    now = evaluate(options).to_json()
    for section in ("models", "fidelity", "ood", "subensembles", "subensemble_fidelity", "fidelity_controls"):
        assert_close(now[section], then[section])
    assert then.keys() <= now.keys()
    assert now["calibrated"] is True


def assert_close(now: Any, then: Any) -> None:
    """Equal but for what another processor rounds otherwise."""
    if isinstance(then, dict):
        for key, value in then.items():
            assert_close(now[key], value)
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=1e-4, abs=1e-6)
    else:
        assert now == then


def test_its_exported_file_predicts(older: Path) -> None:
    said = predict(older / RUN / "export" / "model.onnx", ["data/test.npz"]).rows
    assert len(said) == 10
    student = load_student(RUN)
    assert student.calibration is not None


def test_it_is_told_apart_from_damage(older: Path) -> None:
    assert inspect(older / RUN)["kind"] == "run"
    assert inspect(older / RUN / "export" / "model.safetensors")["kind"] == "safetensors"


def test_its_interrupted_training_goes_on_to_the_same_student(older: Path, options: Settings) -> None:
    from safetensors.numpy import load_file

    finished = load_file(older / RUN / "student.safetensors")
    (older / RUN / "student.safetensors").unlink()
    train(options)
    again = load_file(older / RUN / "student.safetensors")
    assert again.keys() == finished.keys()
    for name, tensor in finished.items():
        np.testing.assert_allclose(again[name], tensor, rtol=1e-5, atol=1e-6)


def test_it_exports_again(older: Path, options: Settings) -> None:
    assert len(export(options, onnx=True, safetensors=True).files) == 2
    assert len(predict(older / RUN / "export" / "model.onnx", ["data/test.npz"]).rows) == 10
