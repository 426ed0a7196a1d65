"""A graph that takes raw pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from evaluate_helpers import pixels_of
from numpy.testing import assert_allclose, assert_array_equal
from tiny import refused, settings

from ensemble_distill.exporting.pixels import refuse_no_pixels, with_pixels
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.serving.card import Card
from ensemble_distill.serving.served import Served
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.predict import predict


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


def test_pixels_that_are_no_bytes_are_refused(runs: Path) -> None:
    _, raw = export(settings(runs), "hydra-s0", uint8_input=True).files
    for value, told in ((0.3, "165.8"), (1.2, "280.5")):
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


def test_a_student_of_numbers_is_refused() -> None:
    members = (Member("a", "0" * 64),)
    card = Card(Classification(("x", "y")), "hydra", "0.2.0", "features", (6,), None, members)
    with refused("--uint8-input", "features"):
        refuse_no_pixels(card, "model.onnx")
