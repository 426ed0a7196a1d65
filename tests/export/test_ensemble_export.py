"""Exported ensembles: what the file says is what the members say, pooled by NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import tiny_regression
import torch
from ensemble_export_helpers import FILE, ROWS, exported, opened, said_by
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from scipy.special import log_softmax, logsumexp
from torch import nn
from typer.testing import CliRunner

from ensemble_distill import __version__
from ensemble_distill.cli.app import app
from ensemble_distill.exporting import ensemble as ensemble_export
from ensemble_distill.exporting.members import FEWEST, SMALL, is_small
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.multi_label import MultiLabel
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.predict import predict

UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")
Outputs = Mapping[str, Any]


def run(file: Path, x: Any) -> Outputs:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)}), strict=True))


def pooled(z: Any, weights: Sequence[float], average: str = "probabilities") -> Outputs:
    """Of logits (B, M, K), by the formulas of the design."""
    log_p, w = log_softmax(z.astype(np.float64), axis=-1), np.array(weights)[:, None] / np.sum(weights)
    mixture = logsumexp(log_p, axis=1, b=w)
    logits = log_softmax((w * log_p).sum(1), axis=-1) if average == "logits" else mixture
    total = -(np.exp(mixture) * mixture).sum(-1)
    data = -(w[:, 0] * (np.exp(log_p) * log_p).sum(-1)).sum(1)
    return {"logits": logits, "head_logits": z, **dict(zip(UNCERTAINTIES, (total, data, total - data), strict=True))}


def assert_said(found: Outputs, wanted: Outputs, rtol: float = 1e-5, atol: float = 2e-5) -> None:
    assert tuple(found) == tuple(wanted)
    for name, values in wanted.items():
        assert found[name].shape == values.shape
        assert_allclose(found[name], values, rtol=rtol, atol=atol, err_msg=name)


# --- classification ---------------------------------------------------------------------------------------------


def pixels(folder: Path) -> Any:
    x = np.load(folder / "data/test.npz")["x"]
    return ((x[:, None] / 255 - 0.5) / 0.5).astype(np.float32)


def linear(folder: Path, x: Any, members: int) -> Any:
    """(B, M, K) logits of the linear members of `tiny`."""
    states = [tiny.member_state(seed) for seed in range(members)]
    return np.stack([x.reshape(len(x), -1) @ s["2.weight"].numpy().T + s["2.bias"].numpy() for s in states], axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve linear members, which run in one batch, and their export. Do not write to it."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("ensemble") / "tiny", members=12, rows=ROWS)
    exported(folder)
    return folder


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_file_says_what_its_members_say_pooled(folder: Path, batch: int) -> None:
    x = pixels(folder)[:batch]
    assert_said(run(folder / FILE, x), pooled(linear(folder, x, 12), [1.0] * 12))


def test_small_members_of_one_architecture_are_one_product(folder: Path) -> None:
    graph = onnx.load(folder / FILE).graph
    assert sum(node.op_type in ("MatMul", "Gemm") for node in graph.node) == 1


def test_the_metadata_say_all_that_serving_needs(folder: Path) -> None:
    model = onnx.load(folder / FILE)
    found = {entry.key.removeprefix("edistill."): entry.value for entry in model.metadata_props}
    assert len(found.pop("sha256")) == 64
    card = {key: json.loads(value) for key, value in found.items()}
    members = card.pop("members")
    assert card == {
        **{"task": "classification", "method": "ensemble", "version": __version__, "classes": ["0", "1", "2"]},
        **{"kind": "pixels", "shape": [1, 6, 6]},
        "preprocessing": {
            **{"size": [6, 6], "mean": [0.5], "std": [0.5]},
            **{"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"},
        },
    }
    assert [member["name"] for member in members] == [f"member-{at}" for at in range(12)]
    assert len({member["sha256"] for member in members}) == 12
    (put,) = model.graph.input
    assert (put.name, put.type.tensor_type.shape.dim[0].dim_param) == ("pixel_values", "batch_size")


def test_predict_reads_it_and_inspect_shows_it(folder: Path) -> None:
    found = predict(folder / "ensemble", [str(folder / "data/test.npz")])
    p = np.exp(pooled(linear(folder, pixels(folder), 12), [1.0] * 12)["logits"])
    assert [row["class"] for row in found.rows] == [str(k) for k in p.argmax(1)]
    assert_allclose([row["probability"] for row in found.rows], p.max(1), atol=1e-5)
    assert inspect(folder / "ensemble") == inspect(folder / FILE)
    shown = CliRunner().invoke(app, ["inspect", str(folder / FILE)])
    assert "an exported ensemble of 12 members" in shown.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_weights_class_order_and_probabilities(tmp_path: Path, average: Literal["probabilities", "logits"]) -> None:
    members, modules = opened(["mlp", "mlp", "mlp"], [None] * 3)
    orders = (None, (1, 2, 0), None)
    members = [
        replace(one, output="probabilities", class_order=order) for one, order in zip(members, orders, strict=True)
    ]
    modules = [nn.Sequential(module, nn.Softmax(1)) for module in modules]
    x, weights = torch.randn(5, 36), [3.0, 2.0, 0.0]
    task = Classification(("a", "b", "c"))
    module = ensemble_export.ensemble_module(task, "features", members, modules, x, weights, average)
    with torch.no_grad():
        log_p = np.stack([module(x).log().numpy() for module in modules], axis=1)
    log_p[:, 1] = log_p[:, 1][:, [2, 0, 1]]  # position j of its output is class (1, 2, 0)[j]
    file = ensemble_export.export_ensemble(module, x, said_by(members, modules, [x] * 3), tmp_path / "model.onnx")
    assert_said(run(file, x.numpy()), pooled(log_p, weights, average))


@pytest.mark.thorough
def test_other_architectures_stand_side_by_side_in_their_order(tmp_path: Path) -> None:
    gray = [Preprocessing((6, 6), (0.5,), (0.5,)), Preprocessing((6, 6), (0.25,), (2.0,))]
    kinds = ["mlp", "conv", *["mlp"] * FEWEST]
    members, modules = opened(kinds, [gray[0], gray[1], *[gray[0]] * FEWEST])
    unit = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    shown = [(unit - m.preprocessing.mean[0]) / m.preprocessing.std[0] for m in members]  # type: ignore[union-attr]
    task = Classification(("a", "b", "c"))
    module = ensemble_export.ensemble_module(task, "pixels", members, modules, shown[0])
    assert [len(part.members) for part in module.parts] == [FEWEST + 1, 1]
    z = said_by(members, modules, shown)
    file = ensemble_export.export_ensemble(module, shown[0], z, tmp_path / "model.onnx")
    assert_said(run(file, shown[0].numpy()), pooled(z, [1.0] * len(kinds)))


def test_members_that_differ_beyond_their_weights_are_no_batch() -> None:
    members, modules = opened(["mlp"] * FEWEST, [None] * FEWEST)
    x = torch.randn(4, 36)
    task = Classification(("a", "b", "c"))
    whole = ensemble_export.ensemble_module(task, "features", members, modules, x)
    assert [len(part.members) for part in whole.parts] == [FEWEST]
    modules[3].register_forward_hook(lambda module, inputs, out: 2 * out)
    apart = ensemble_export.ensemble_module(task, "features", members, modules, x)
    assert [len(part.members) for part in apart.parts] == [1] * FEWEST
    assert_allclose(whole(x)[:, :3].detach(), apart(x)[:, :3].detach(), atol=1e-6)


def test_what_is_batched_is_small_and_has_no_convolution() -> None:
    assert is_small(nn.Linear(64, SMALL // 64))
    assert not is_small(nn.Linear(64, SMALL // 64 + 1))
    assert not is_small(nn.Sequential(nn.Conv2d(1, 1, 1)))


# --- numbers and labels -----------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_numbers_are_in_the_targets_unit(tmp_path: Path) -> None:
    units = (tiny_regression.LEVEL, tiny_regression.SPREAD)
    folder = tiny_regression.make_folder(tmp_path / "tiny", rows={"validation": 12, "test": 10}, units=units)
    over = {"teachers.standardized": {"mean": units[0], "std": units[1]}, "teachers.weights": [1.0, 2.0, 1.0]}
    file = exported(folder, over)
    x, _ = tiny_regression.load_data(folder, "test")
    means, variances = tiny_regression.ensemble(x)
    w = np.array([0.25, 0.5, 0.25])
    mean, data = (w * means).sum(1), (w * variances).sum(1)
    model = (w * (means - mean[:, None]) ** 2).sum(1)
    wanted = {"mean": mean, "variance": data + model, "head_means": means, "head_variances": variances}
    assert_said(run(file, x), wanted | dict(zip(UNCERTAINTIES, (data + model, data, model), strict=True)), rtol=1e-4)
    (row, *_) = predict(file, [str(folder / "data/test.npz")]).rows
    assert row["mean"] == pytest.approx(mean[0], rel=1e-5)


ORDERS = (None, (2, 0, 1))
UNITS = (None, (5.0, 3.0))
MEMBERS = [
    *((Classification, Member("m", "0", output, o), 3) for output in Classification.outputs for o in ORDERS),
    *((MultiLabel, Member("m", "0", output, o), 3) for output in MultiLabel.outputs for o in ORDERS),
    *((Regression, Member("m", "0", output, units=u), 4) for output in Regression.outputs[1:] for u in UNITS),
    (Regression, Member("m", "0", "mean", units=((5.0, -1.0), (3.0, 0.1)), variance=(2.5, 0.4)), 2),
]


@pytest.mark.parametrize(("task", "member", "width"), MEMBERS)
def test_a_graph_reads_raw_outputs_as_the_cache_does(task: Any, member: Member, width: int) -> None:
    raw = torch.rand(6, width, generator=torch.Generator().manual_seed(2)) * 0.9 + 0.05
    if member.output == "probabilities":
        raw[0] = torch.tensor([0.0, 1.0, 0.0])
    if task is Classification and member.output == "probabilities":
        raw = raw / raw.sum(1, keepdim=True)
    found = task.as_answers(raw, member)
    assert found.dtype == torch.float32
    assert_allclose(found, task.answers(raw, member, "test", range(6)), rtol=1e-6, atol=1e-6)


def test_probabilities_of_labels_near_1_are_coarse_and_no_difference() -> None:
    outputs = {"logits": np.array([[0.0, 12.0]]), "head_logits": np.array([[[0.0, 12.0]]])}
    says = [Member("a", "0", "probabilities")]
    near, far = MultiLabel.members_tolerance("logits", outputs, says)[0]
    assert near < 2e-4
    assert far > np.exp(12.0) * np.finfo(np.float32).eps
    assert np.max(MultiLabel.members_tolerance("logits", outputs, [Member("a", "0")])) < 2e-4


@pytest.mark.thorough
def test_several_targets_and_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(2, 3, 3)).astype(np.float32)
    y = (x > 0).astype(np.int64)
    folder = tmp_path / "labels"
    (folder / "teachers").mkdir(parents=True)
    np.savez(folder / "test.npz", x=x, y=y, classes=np.array(["dog", "cat", "boat"]))
    (folder / "model.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(3, 3, bias=False)\n")
    (folder / "edistill.toml").write_text(
        'task = "multi-label"\n[teachers]\nmodel = "model.py:make"\n[data]\ntest = "test.npz"\n'
    )
    for at in range(2):
        save_file({"weight": torch.from_numpy(weight[at])}, folder / f"teachers/m{at}.safetensors")
    z = np.einsum("bi,mki->bmk", x, weight)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    mean = p.mean(1)
    entropy = lambda q: -(q * np.log(q) + (1 - q) * np.log(1 - q))  # noqa: E731
    total, data = entropy(mean).sum(1), entropy(p).sum(-1).mean(1)
    wanted = {"logits": np.log(mean / (1 - mean)), "head_logits": z}
    wanted |= dict(zip(UNCERTAINTIES, (total, data, total - data), strict=True))
    file = exported(folder)
    assert_said(run(file, x), wanted, atol=1e-4)
    assert inspect(file)["classes"] == ["dog", "cat", "boat"]
