"""Exported students of numbers: names and shapes, the arithmetic of outputs, predictions, and what inspect says."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import norm
from tiny import refused, settings
from tiny_regression import LEVEL, SPREAD, load_data, make_folder
from typer.testing import CliRunner, Result

import ensemble_distill.exporting.onnx as onnx_format
from ensemble_distill import load_student
from ensemble_distill.cli.app import app
from ensemble_distill.data.source import Array
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.serving.predictions import formatted
from ensemble_distill.serving.served import Served
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.predict import predict
from ensemble_distill.workflows.train import train

UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")
STANDARDIZED = {"teachers.standardized": {"mean": LEVEL, "std": SPREAD}}
Export = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, of three heads and of one, and their exports. Do not write to it."""
    rows = {"train": 40, "validation": 12, "test": 10}
    folder = make_folder(tmp_path_factory.mktemp("export") / "tiny", rows=rows, units=(LEVEL, SPREAD))
    toml = folder / "edistill.toml"
    said = f'"mean-logvar"\nstandardized = {{ mean = {LEVEL}, std = {SPREAD} }}'
    toml.write_text(toml.read_text().replace('"mean-logvar"', said))
    cache_logits(settings(folder))
    for method in ("hydra", "kd"):
        train(settings(folder, {"train.method": method}))
        export(settings(folder), f"{method}-s0", onnx=True, safetensors=True)
    return folder


def exported(folder: Path, method: str) -> Path:
    return folder / f"runs/{method}-s0/export/model.onnx"


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def outputs_of(path: Path, x: Array) -> dict[str, Any]:
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": x}), strict=True))


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


# --- the file ---------------------------------------------------------------------------------------------------


def test_inputs_and_outputs(folder: Path) -> None:
    one = [(name, ["batch_size"]) for name in ("mean", "variance")]
    heads = [(name, ["batch_size", 3]) for name in ("head_means", "head_variances")]
    uncertainties = [(name, ["batch_size"]) for name in UNCERTAINTIES]
    for method, wanted in (("hydra", [*one, *heads, *uncertainties]), ("kd", [*one, *uncertainties[:2]])):
        session = session_of(exported(folder, method))
        assert [(put.name, put.shape) for put in session.get_inputs()] == [("input", ["batch_size", 3])]
        assert [(put.name, put.shape) for put in session.get_outputs()] == wanted
        assert {put.type for put in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


def test_a_body_may_take_a_mean_of_its_own(folder: Path) -> None:
    """A value has one name in the whole graph."""
    graph = onnx_format.onnx.load(exported(folder, "hydra")).graph
    made = [name for node in graph.node for name in node.output]
    assert len(set(made)) == len(made)
    (pooling,) = (node for node in graph.node if node.op_type == "ReduceMean" and "input" in node.input)
    assert pooling.output[0] != "mean"
    assert "mean" in made


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("method", ["hydra", "kd"])
def test_what_it_computes_is_torchs_and_numpys(folder: Path, method: str, batch: int) -> None:
    x = load_data(folder, "test")[0][:batch]
    found = outputs_of(exported(folder, method), x)
    student = load_student(folder / f"runs/{method}-s0", trust=True)
    with torch.no_grad():
        raw = student(torch.from_numpy(x))
        summary = student.predictive(raw).summary()
    family, raw = student.family, raw.double().numpy()
    means, variances = family.center + family.scale * raw[..., 0], family.scale**2 * np.exp(raw[..., 1])
    if method == "hydra":
        assert_allclose(found["head_means"], means, rtol=3e-7)
        assert_allclose(found["head_variances"], variances, rtol=2e-5)
        means, variances = found["head_means"].astype(np.float64), found["head_variances"].astype(np.float64)
        assert_allclose(found["model_uncertainty"], means.var(1), rtol=1e-5)
        rounding = 6e-5 * np.sqrt(found["model_uncertainty"])  # the means go in steps of 3e-5
        assert (np.abs(found["model_uncertainty"] - summary.model.numpy()) <= rounding + 1e-8).all()
    assert_allclose(found["mean"], means.mean(1), rtol=3e-7)
    assert_allclose(found["variance"], variances.mean(1) + means.var(1), rtol=2e-5)
    assert_allclose(found["data_uncertainty"], variances.mean(1), rtol=2e-5)
    assert np.array_equal(found["total_uncertainty"], found["variance"])
    assert_allclose(found["mean"], summary.mean, rtol=3e-7)
    assert_allclose(found["variance"], summary.total, rtol=2e-5)
    assert all(values.dtype == np.float32 and len(values) == batch for values in found.values())


def test_the_card(folder: Path) -> None:
    card = Served(exported(folder, "hydra")).card
    assert (card.task, card.kind, card.shape) == (Regression(), "features", (3,))
    assert card.preprocessing is None
    assert [(m.name, m.output, m.units) for m in card.members] == [
        (f"member-{seed}", "mean-logvar", (LEVEL, SPREAD)) for seed in range(3)
    ]


def test_limits_carry_the_targets_unit() -> None:
    """A thousandth of a deviation is refused in any unit, a thousandth of that is not."""
    for center, spread in ((0.0, 1.0), (454.0, 17.0), (0.0, 1e-6), (1e6, 100.0)):
        outputs = {
            "mean": np.array([center], np.float32),
            "variance": np.array([spread**2], np.float32),
            "head_means": np.array([[center, center + spread]], np.float32),
            "head_variances": np.array([[spread**2, spread**2 / 100]], np.float32),
            "model_uncertainty": np.array([spread**2 / 1e3], np.float32),
            "total_uncertainty": np.array([spread**2], np.float32),
        }
        for name, shares in (
            ("mean", [spread]),
            ("head_means", [[spread, spread]]),
            ("variance", [spread**2]),
            ("head_variances", [[spread**2, spread**2 / 100]]),
            ("model_uncertainty", [spread**2]),
        ):
            limit = Regression.tolerance(name, outputs) * np.ones_like(outputs[name])
            rounding = 1e-6 * np.abs(outputs[name])
            assert (limit < 1e-3 * np.array(shares) + rounding).all(), name
            assert (limit > 1e-6 * np.array(shares)).all(), name


@pytest.mark.parametrize(
    ("name", "factor", "offset"),
    [("mean", 1, 0.1), ("head_means", 1, 0.1), ("variance", 1.001, 0), ("head_variances", 0.999, 0)],
)
def test_a_file_that_disagrees_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, factor: float, offset: float
) -> None:
    class Off(Served):
        def run(self, x: Array) -> dict[str, Array]:
            return {key: values * factor + offset if key == name else values for key, values in super().run(x).items()}

    made = exported(folder, "hydra")
    monkeypatch.setattr(onnx_format, "graph_of", lambda *_: onnx_format.onnx.load(made))
    monkeypatch.setattr(onnx_format, "Served", Off)
    run = folder / "runs/hydra-s0"
    x = torch.from_numpy(load_data(folder, "validation")[0])
    with refused(f"The exported {name} differs from torch's", "nothing was written", "--safetensors"):
        onnx_format.export_onnx(load_student(run, trust=True), StudentConfig.load(run), x, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


# --- predictions ------------------------------------------------------------------------------------------------


def test_predictions_are_means_and_intervals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = load_data(folder, "test")
    np.savez(tmp_path / "rows.npz", x=x)
    monkeypatch.chdir(folder)
    for method in ("hydra", "kd"):
        model = exported(folder, method)
        rows = json.loads(edistill(f"predict data/test.npz -m {model} --json").stdout)
        assert json.loads(edistill(f"predict {tmp_path}/rows.npz -m {model} --format json").stdout) == rows
        found = outputs_of(model, x)
        own = [name for name in UNCERTAINTIES if name in found]
        assert [list(row) for row in rows] == [["row", "mean", "lower95", "upper95", *own]] * 10
        assert [row["row"] for row in rows] == [f"row {at}" for at in range(10)]
        assert [row["mean"] for row in rows] == found["mean"].tolist()
        lower, upper = norm.interval(0.95, found["mean"].astype(np.float64), np.sqrt(found["variance"]))
        assert_allclose([(row["lower95"], row["upper95"]) for row in rows], np.stack([lower, upper], 1), rtol=1e-6)
        for name in own:
            assert [row[name] for row in rows] == found[name].tolist()


def test_csv_holds_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    model = exported(folder, "hydra")
    text = edistill(f"predict data/test.npz -m {model}").stdout
    assert edistill(f"predict data/test.npz -m {model} -o {tmp_path}/rows.csv").stdout == ""
    assert (tmp_path / "rows.csv").read_text() == text
    rows = predict(model, ["data/test.npz"]).rows
    shown = list(csv.DictReader(StringIO(text)))
    for row, told in zip(rows, shown, strict=True):
        assert list(told) == list(row)
        for name in ("mean", "lower95", "upper95"):
            assert np.float32(told[name]) == np.float32(row[name])
        for name in UNCERTAINTIES:
            assert float(told[name]) == pytest.approx(row[name], rel=1e-5)


def test_csv_resolves_an_interval_far_from_0() -> None:
    row = {"row": "a", "mean": 1245123.25, "lower95": 1245121.3, "upper95": 1245125.2, "total_uncertainty": 1 / 3}
    assert formatted([row], "csv") == (
        "row,mean,lower95,upper95,total_uncertainty\na,1245123.2,1245121.2,1245125.2,0.333333\n"
    )


def test_predictions_of_other_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    model = exported(folder, "kd")
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 4), np.float32))
    np.savez(tmp_path / "pixels.npz", x=np.zeros((2, 4, 4), np.uint8))
    far = 1e6 * np.concatenate([np.eye(3), -np.eye(3)])  # whose log-variances are beyond float32, one way or the other
    np.savez(tmp_path / "far.npz", x=far.astype(np.float32))
    for name, said in (
        ("wide", "takes inputs of shape (3,), but row 0 is (4,)"),
        ("pixels", "takes features, but the input holds pixels"),
        ("far", "gives outputs that are not finite"),
    ):
        with refused(said):
            predict(model, [str(tmp_path / f"{name}.npz")])


# --- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_says_what_each_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    def document(path: str) -> Any:
        result = edistill(f"inspect {path} --json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    cache = document("cache")
    assert (cache["kind"], cache["task"], cache["classes"], cache["dtype"]) == ("cache", "regression", [], "float32")
    assert [member["units"] for member in cache["members"]] == [[LEVEL, SPREAD]] * 3
    assert {name: (s["rows"], s["views"], s["labels"]) for name, s in cache["splits"].items()} == {
        **{"train": (40, 2, True), "validation": (12, 1, True), "test": (10, 1, True)}
    }
    assert cache["bytes"] == 3 * ((2 * 40 + 12 + 10) * 8 + 4 * 128), "two float32 a row, and a header a file"

    run = document("runs/hydra-s0")
    assert (run["kind"], run["task"], run["classes"], run["student"]["heads"]) == ("run", "regression", [], 3)
    assert run["student"]["family"].keys() == {"name", "center", "scale"}
    assert run["student"]["family"]["name"] == "gaussian"

    model = document("runs/kd-s0/export/model.onnx")
    assert (model["kind"], model["task"], model["classes"], model["method"]) == ("onnx", "regression", [], "kd")
    assert model["input"] == {"name": "input", "kind": "features", "shape": [3], "preprocessing": None}
    assert model["outputs"] == ["mean", "variance", "total_uncertainty", "data_uncertainty"]

    assert document("runs/kd-s0/export/model.safetensors")["task"] == "regression"
    assert [m["output"] for m in document("teachers")["members"]] == ["mean-logvar"] * 3
    data = document("data/test.npz")
    assert (data["kind"], data["rows"], data["holds"], data["labels"]) == ("data", 10, "features", True)
    for path in ("cache", "runs/hydra-s0", "runs/hydra-s0/export/model.onnx", "teachers", "data/test.npz"):
        shown = edistill(f"inspect {path}")
        assert shown.exit_code == 0
        assert shown.stdout.startswith(path)
