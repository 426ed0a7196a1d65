"""A graph that takes raw pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_regression
from evaluate_helpers import pixels_of
from numpy.testing import assert_allclose, assert_array_equal
from runs_helpers import RUN
from tiny import refused, refused_and_kept, settings

from ensemble_distill.evaluation import price
from ensemble_distill.exporting.pixels import refuse_no_pixels, with_pixels
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runs.exports import stale_exports
from ensemble_distill.serving.card import Card
from ensemble_distill.serving.served import Served
from ensemble_distill.settings import load_settings
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.predict import predict
from ensemble_distill.workflows.train import train


def said(model: str | bytes, given: dict[str, Any]) -> list[Any]:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, given)


def test_it_says_of_bytes_what_the_plain_file_says_of_them_normalized(runs: Path) -> None:
    plain, raw = export(settings(runs), "hydra-s0", uint8_input=True).files
    assert (plain.name, raw.name) == ("model.onnx", "model-uint8.onnx")
    pixels = np.load(runs / "data/test.npz")["x"][..., None]
    now = said(str(raw), {"pixels": pixels})
    then = said(str(plain), {"pixel_values": pixels_of(runs / "data/test.npz").numpy()})
    for a, b in zip(now, then, strict=True):
        assert_allclose(a, b, rtol=0, atol=1e-5)
    model = onnx.load(raw)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert inspect(raw)["input"]["type"] == "uint8"


def test_predict_and_evaluate_take_it(runs: Path) -> None:
    plain, raw = export(settings(runs), "hydra-s0", uint8_input=True).files
    data = str(runs / "data/test.npz")
    a, b = predict(plain, data).rows, predict(raw, data).rows
    for one, other in zip(a, b, strict=True):
        assert one["class"] == other["class"]
        assert one["model_uncertainty"] == pytest.approx(other["model_uncertainty"], abs=1e-5)
    nlls = [evaluate(settings(runs), str(path)).models["student"]["nll"] for path in (plain, raw)]
    assert nlls[0] == pytest.approx(nlls[1], abs=1e-5)


COMBINED = {"fp16": "float16", "int8": "int8"}


@pytest.fixture
def loose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tiny student loses is allowed."""
    monkeypatch.setattr(price, "MOST_LOSS", 10.0)
    monkeypatch.setattr(price, "MOST_SHIFT", 10.0)


def test_files_of_less_precision_take_raw_pixels_too(runs: Path, loose: None) -> None:
    exported = export(settings(runs), "hydra-s0", fp16=True, int8=True, uint8_input=True)
    there = {path.name: path for path in exported.files}
    assert list(there) == [
        "model.onnx", "model-fp16.onnx", "model-int8.onnx", "model-fp16-uint8.onnx", "model-int8-uint8.onnx",
        "model-uint8.onnx",
    ]  # fmt: skip
    pixels = np.load(runs / "data/validation.npz")["x"][..., None]
    x = ((pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).transpose(0, 3, 1, 2)
    labels = np.load(runs / "data/validation.npz")["y"]
    prices = {one.file: one for one in exported.prices}
    assert prices.keys() == there.keys() - {"model-uint8.onnx"}
    for name, precision in COMBINED.items():
        path = there[f"model-{name}-uint8.onnx"]
        found = said(str(path), {"pixels": pixels})
        for now, then in zip(found, said(str(there[f"model-{name}.onnx"]), {"pixel_values": x}), strict=True):
            assert_allclose(now, then, rtol=0, atol=1e-5)
        plain = said(str(there["model.onnx"]), {"pixel_values": x})
        assert any(not np.array_equal(now, then) for now, then in zip(found, plain, strict=True))
        own = inspect(path)
        assert (own["precision"], own["input"]["type"]) == (precision, "uint8")
        assert prices[path.name].figures["nll"] == pytest.approx(
            -found[0][np.arange(len(labels)), labels].mean(), abs=1e-5
        )
        moved = np.abs(found[-1] - plain[-1]).sum() / plain[-1].sum()
        assert prices[path.name].shift == pytest.approx(moved, abs=1e-4)
        assert prices[path.name].bytes == path.stat().st_size
        assert len(predict(path, str(runs / "data/test.npz")).rows) == 10
        assert path.name in (runs / RUN / "export/README.md").read_text()


def test_each_is_refused_where_it_loses_too_much(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(settings(runs), "hydra-s0", onnx=True, card=False)
    monkeypatch.setattr(price, "MOST_LOSS", -1.0)
    with refused_and_kept(runs / RUN, "--fp16", "--force", "-1.0"):
        export(settings(runs), "hydra-s0", fp16=True, uint8_input=True, card=False)
    export(settings(runs), "hydra-s0", fp16=True, uint8_input=True, force=True, card=False)
    assert (runs / RUN / "export/model-fp16-uint8.onnx").is_file()


def test_a_graph_of_raw_pixels_that_says_something_else_is_not_written(
    runs: Path, loose: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def darker(model: Any, to: Preprocessing) -> Any:
        return with_pixels(model, replace(to, mean=(0.4,)))

    for module in ("export_smaller", "export_pixels"):
        monkeypatch.setattr(f"ensemble_distill.workflows.{module}.with_pixels", darker)
    for more in ({}, {"fp16": True}, {"int8": True}):
        with refused("--uint8-input", "nothing was written"):
            export(settings(runs), "hydra-s0", uint8_input=True, **more)
    assert not list((runs / RUN / "export").glob("*uint8.onnx"))


def test_of_stale_files_one_command_makes_all_anew(runs: Path, loose: None) -> None:
    export(settings(runs), "hydra-s0", safetensors=True, fp16=True, uint8_input=True)
    assert stale_exports(runs / RUN) == ()
    report = calibrate(settings(runs), "hydra-s0", remove=True)
    assert {path.name for path in report.stale} == {
        "model.onnx", "model.safetensors", "model-fp16.onnx", "model-uint8.onnx", "model-fp16-uint8.onnx",
    }  # fmt: skip
    flags = report.export_again.split()[3:]
    assert flags == ["--onnx", "--fp16", "--uint8-input", "--safetensors"]
    asked: Any = {flag.removeprefix("--").replace("-", "_"): True for flag in flags}
    export(settings(runs), "hydra-s0", **asked)
    assert stale_exports(runs / RUN) == ()


def test_pixels_that_are_no_bytes_are_refused(runs: Path) -> None:
    _, raw = export(settings(runs), "hydra-s0", uint8_input=True).files
    for value, told in ((0.3, "165.8"), (300 / 127.5 - 1, "300"), (-20 / 127.5 - 1, "-20")):
        with refused("8 bits", told):
            Served(raw).run(np.full((2, 1, 6, 6), value, np.float32))


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    info = onnx.helper.make_tensor_value_info
    given, told = (info(name, onnx.TensorProto.FLOAT, ["batch_size", 3, 4, 5]) for name in ("pixel_values", "y"))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["pixel_values"], ["y"])], "identity", [given], [told]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    to = Preprocessing((4, 5), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    made = with_pixels(model, to)
    onnx.checker.check_model(made, full_check=True)
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    (found,) = said(made.SerializeToString(), {"pixels": x})
    wanted = ((x / 255 - np.array(to.mean)) / np.array(to.std)).transpose(0, 3, 1, 2)
    assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert_array_equal(found.shape, (2, 3, 4, 5))


@pytest.mark.thorough
def test_a_run_of_numbers_is_refused_before_any_file_is_written(tmp_path: Path) -> None:
    folder = tiny_regression.make_folder(tmp_path / "numbers")
    given = load_settings(folder / "edistill.toml")
    cache_logits(given)
    run = train(given).folder
    for more in ({}, {"int8": True}):
        with refused_and_kept(run, "--uint8-input", "features"):
            export(given, uint8_input=True, **more)


def test_a_student_of_numbers_is_refused() -> None:
    members = (Member("a", "0" * 64),)
    card = Card(Classification(("x", "y")), "hydra", "0.2.0", "features", (6,), None, members)
    with refused("--uint8-input", "features"):
        refuse_no_pixels(card, "model.onnx")
