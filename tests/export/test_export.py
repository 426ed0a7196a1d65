"""Exports: what an ONNX file holds and says, that it computes what torch does, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import one_head
import onnx
import onnxruntime
import pytest
import timm
import torch
from export_helpers import config_of, student_around
from numpy.testing import assert_allclose
from scipy.special import log_softmax, logsumexp
from torch import Tensor, nn

import ensemble_distill.exporting.onnx as onnx_format
from ensemble_distill import __version__, load_student
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.onnx import export_onnx
from ensemble_distill.exporting.safetensors import export_safetensors
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime import files
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.settings import Settings
from ensemble_distill.students.student import Student
from ensemble_distill.tasks import classification
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")
ALL = ("logits", "head_logits", *UNCERTAINTIES)


def rows(shape: tuple[int, ...], count: int = 5) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@torch.no_grad()
def assert_same_as_torch(path: Path, student: Student, x: Tensor) -> dict[str, Any]:
    """Every output of the file against the formulas of the design, from torch's raw head logits."""
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: x.numpy()}), strict=True))
    raw = student(x).double().numpy()
    log_p = log_softmax(raw, axis=-1)
    weights = np.ones(raw.shape[1]) if student.weights is None else student.weights.double().numpy()
    weights = (weights / weights.sum())[:, None]
    mixture = logsumexp(log_p, axis=1, b=weights)
    pooled = log_softmax((weights * log_p).sum(1), axis=-1) if student.average == "logits" else mixture
    total = -(np.exp(mixture) * mixture).sum(-1)
    data = -(weights[:, 0] * (np.exp(log_p) * log_p).sum(-1)).sum(1)
    wanted = {"head_logits": raw, "logits": pooled, "total_uncertainty": total, "data_uncertainty": data}
    wanted["model_uncertainty"] = total - data
    for name, values in found.items():
        assert values.shape == wanted[name].shape
        assert_allclose(values, wanted[name], rtol=0, atol=1e-4 if "logits" in name else 1e-5, err_msg=name)
    return found


@pytest.fixture(scope="module")
def real(digits_session: Path) -> Tensor:
    """Every test row of the digits as the students see it."""
    x = np.load(digits_session / "data/test.npz")["x"]
    return torch.from_numpy((x[:, None].astype(np.float32) / 255 - 0.5) / 0.5)


# --- ONNX: what it holds ----------------------------------------------------------------------------------------


def test_inputs_outputs_and_the_dynamic_batch(digits_session: Path) -> None:
    path = digits_session / "runs/hydra-s0/export/model.onnx"
    session = session_of(path)
    assert [(put.name, put.shape, put.type) for put in session.get_inputs()] == [
        ("pixel_values", ["batch_size", 1, 8, 8], "tensor(float)")
    ]
    assert [(put.name, put.shape) for put in session.get_outputs()] == [
        ("logits", ["batch_size", 10]),
        ("head_logits", ["batch_size", 8, 10]),
        *((name, ["batch_size"]) for name in UNCERTAINTIES),
    ]
    model = onnx.load(path, load_external_data=False)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer), "one file"


@pytest.mark.parametrize("batch", [1, 3, 33])
def test_a_batch_of_any_size_is_what_torch_computes(digits_session: Path, real: Tensor, batch: int) -> None:
    run = digits_session / "runs/hydra-s0"
    found = assert_same_as_torch(run / "export/model.onnx", load_student(run, trust=True), real[:batch])
    assert tuple(found) == ALL
    assert_allclose(np.exp(found["logits"]).sum(-1), 1, atol=1e-6)


def test_the_metadata_say_all_that_serving_needs(digits_session: Path) -> None:
    run = Run.open(digits_session / "runs/hydra-s0")
    model = onnx.load(run.folder / "export/model.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("edistill.")}
    assert len(found.pop("edistill.sha256")) == 64
    found = {key: json.loads(value) for key, value in found.items()}
    reference = found.pop("edistill.reference")  # which tests/serving/test_calibration_rows.py looks into
    assert {name: np.shape(values) for name, values in reference.items()} == {
        "rows": (),
        "total_uncertainty": (197,),
        "model_uncertainty": (197,),
        "conformal": (1, 197),
    }
    manifest = Manifest.load(digits_session / "cache")
    assert found == {
        "edistill.task": "classification",
        "edistill.method": "hydra",
        "edistill.version": __version__,
        "edistill.classes": [str(digit) for digit in range(10)],
        "edistill.kind": "pixels",
        "edistill.shape": [1, 8, 8],
        "edistill.preprocessing": {
            **{"size": [8, 8], "mean": [0.5], "std": [0.5]},
            **{"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"},
        },
        "edistill.members": json.loads(json.dumps([member.to_json() for member in manifest.members])),
        "edistill.made_from": {"weights": sha256_file(run.folder / "student.safetensors"), "calibration": None},
    }
    assert [member["name"] for member in found["edistill.members"]] == [f"member-{index:02d}" for index in range(8)]


# --- ONNX: other students ---------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_student_of_one_head_has_no_model_uncertainty(
    digits: Path, settings_of: Callable[..., Settings], real: Tensor
) -> None:
    settings = settings_of(digits, {"train.method": one_head.SPEC, "train.epochs": 1, "method": {}})
    report = train(settings)
    assert (report.folder.name, report.heads) == ("OneHead-s0", 1)
    (path,) = export(settings, "OneHead-s0", onnx=True).files
    found = assert_same_as_torch(path, load_student(report.folder, trust=True), real[:3])
    assert tuple(found) == ("logits", "total_uncertainty", "data_uncertainty"), "absent, not 0"
    assert_allclose(found["total_uncertainty"], found["data_uncertainty"])


def plain_convolutions() -> tuple[nn.Module, int]:
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers), 4


def timms() -> tuple[nn.Module, int]:
    body = timm.create_model("test_resnet", num_classes=0)
    return body, body.num_features


@pytest.mark.thorough
@pytest.mark.parametrize("make", [plain_convolutions, pytest.param(timms, marks=pytest.mark.slow)])
def test_a_convolutional_body_with_batchnorm_and_averaged_logits(
    tmp_path: Path, make: Callable[[], tuple[nn.Module, int]]
) -> None:
    torch.manual_seed(0)
    body, features = make()
    for layer in body.modules():  # statistics that are not those of a fresh network
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.25,) * 3)
    more = {"preprocessing": preprocessing, "hidden": (6,), "weights": (1.0, 2.0, 3.0), "average": "logits"}
    config = config_of((3, 32, 32), "pixels", **more)
    student = student_around(body, features, config)
    path = export_onnx(student, config, rows(config.architecture.shape), tmp_path / "model.onnx")
    assert session_of(path).get_inputs()[0].name == "pixel_values"
    for batch in (1, 3):
        assert_same_as_torch(path, student, rows(config.architecture.shape, batch))


def test_a_first_head_of_weight_0_leaves_very_sure_rows_finite(tmp_path: Path) -> None:
    """onnxruntime does not shift a logsumexp that begins with -inf, and would lose what is below e⁻⁸⁸."""
    config = config_of((4,), weights=(0.0, 1.0, 3.0))
    torch.manual_seed(0)
    student = student_around(nn.Linear(4, 6), 6, config)
    with torch.no_grad():
        for parameter in student.heads.parameters():
            parameter *= 100
    x = 3 * rows((4,), 40)
    path = export_onnx(student, config, x[:2], tmp_path / "model.onnx")
    raw = student(x).detach()[:, 1:]
    assert (raw.amax(-1) - raw.amin(-1)).max() > 150, "some are surer than float32 can hold as a probability"
    log_p = log_softmax(raw.double().numpy(), axis=-1)
    wanted = logsumexp(log_p, axis=1, b=np.array([[0.25], [0.75]]))
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: x.numpy()}), strict=True))
    assert all(np.isfinite(values).all() for values in found.values())
    assert_allclose(found["logits"], wanted, rtol=1e-5, atol=1e-4)


def small_student() -> tuple[Student, StudentConfig]:
    config = config_of((4,), weights=(1.0, 0.0, 3.0))
    torch.manual_seed(0)
    return student_around(nn.Linear(4, 6), 6, config), config


@pytest.fixture(scope="module")
def traced() -> onnx.ModelProto:
    """The small student as torch's exporter leaves it; each call of that takes seconds."""
    student, _ = small_student()
    return onnx_format.graph_of(onnx_format.Predictions(student, torch.zeros(2, 4)).eval(), torch.zeros(2, 4), "input")


@pytest.fixture
def small(
    traced: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Student, StudentConfig, Tensor, Path]:
    """A student on features that is traced already, rows, and a place."""

    def copied(*_: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(traced)
        return model

    monkeypatch.setattr(onnx_format, "graph_of", copied)
    student, config = small_student()
    return student, config, rows((4,)), tmp_path / "model.onnx"


def test_features_and_weighted_heads(small: tuple[Student, StudentConfig, Tensor, Path]) -> None:
    student, config, x, path = small
    export_onnx(student, config, x, path)
    assert session_of(path).get_inputs()[0].name == "input"
    assert "Einsum" not in {node.op_type for node in onnx.load(path).graph.node}  # it copies the weights at every call
    found = assert_same_as_torch(path, student, rows((4,), 33))
    assert found["model_uncertainty"].mean() > 0.05, "the heads differ"


# --- ONNX: refusals ---------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not torch.compiler.is_exporting()
        return x


@pytest.mark.thorough
@pytest.mark.parametrize(("body", "reason"), [(Branching(), "Could not guard"), (Asserting(), "AssertionError")])
def test_a_body_that_torch_cannot_export(
    tmp_path: Path, body: nn.Module, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = config_of((4,))
    with pytest.raises(EdistillError, match=f"cannot export this student's body to ONNX: .*{reason}") as caught:
        export_onnx(student_around(body, 4, config), config, rows((4,)), tmp_path / "model.onnx")
    assert str(caught.value).endswith("or use edistill export --safetensors.")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", ""), "the exporter prints nothing of its own"


@pytest.mark.parametrize(
    ("tolerance", "told"), [("LOGITS_APART", "logits differs"), ("NATS_APART", "uncertainty differs")]
)
def test_a_file_that_disagrees_with_torch_is_not_written(
    small: tuple[Student, StudentConfig, Tensor, Path], monkeypatch: pytest.MonkeyPatch, tolerance: str, told: str
) -> None:
    student, config, x, path = small
    path.write_bytes(b"the last good one")
    monkeypatch.setattr(classification, tolerance, -1.0)
    with pytest.raises(EdistillError, match=rf"{told} from torch's by \d\.\d\de[+-]\d+ on 1 real rows \(allowed: -1"):
        export_onnx(student, config, x, path)
    assert path.read_bytes() == b"the last good one"
    assert list(path.parent.iterdir()) == [path]


def test_the_comparison_sees_a_real_difference(small: tuple[Student, StudentConfig, Tensor, Path]) -> None:
    student, config, x, path = small
    with torch.no_grad():
        student.heads.layers[0].bias[1, 0] += 1e-3  # after it was traced
    with pytest.raises(EdistillError, match=r"logits differs from torch's by \d"):
        export_onnx(student, config, x, path)
    assert not path.exists()


@pytest.mark.parametrize("off", [1e-3, np.nan])
@pytest.mark.parametrize(("rows", "at"), [(1, 0), (4, 2)])
def test_one_row_alone_and_all_together_are_compared(rows: int, at: int, off: float) -> None:
    wanted = np.arange(12, dtype=np.float32).reshape(4, 3)

    class Off:
        def run(self, x: Any) -> Any:
            found = wanted[: len(x)].copy()
            found[at if len(x) == rows else 0, 1] += off if len(x) == rows else 0
            return {"y": found}

    expected = onnx_format.Wanted(torch.zeros(4, 2), {"y": wanted}, lambda name, of: 1e-4, "Report it.")
    with pytest.raises(EdistillError, match=rf"y differs from torch's by .* on {rows} real rows"):
        onnx_format._compare(Off(), expected)  # type: ignore[arg-type]


def test_more_than_a_file_holds_is_refused_before_the_work(
    small: tuple[Student, StudentConfig, Tensor, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, config, x, path = small
    size = sum(4 * tensor.numel() for tensor in student.state_dict().values())
    monkeypatch.setattr(onnx_format, "LARGEST", size - 1)
    monkeypatch.setattr(onnx_format, "graph_of", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(
        EdistillError, match=r"GB of weights, and one ONNX file holds 2 GB\. Use edistill export --safe"
    ):
        export_onnx(student, config, x, path)
    assert list(path.parent.iterdir()) == []


def test_a_crash_leaves_the_old_file(
    small: tuple[Student, StudentConfig, Tensor, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, config, x, path = small
    path.write_bytes(b"the last good one")

    def crash(step: str, _: Path) -> NoReturn:
        raise KeyboardInterrupt(step)

    with monkeypatch.context() as patch:
        patch.setattr(files, "crash_point", crash)
        with pytest.raises(KeyboardInterrupt):
            export_onnx(student, config, x, path)
    assert path.read_bytes() == b"the last good one"
    export_onnx(student, config, x, path)
    assert_same_as_torch(path, student, x)
    assert list(path.parent.iterdir()) == [path], "leftovers are gone"


def test_a_student_that_says_nothing_finite_is_not_exported(
    small: tuple[Student, StudentConfig, Tensor, Path], tmp_path: Path
) -> None:
    student, config, _, _ = small
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(EdistillError, match="holds numbers that are not finite"):
        export_safetensors(student, config, tmp_path / "model.safetensors")
    with pytest.raises(EdistillError, match="outputs are not finite on real rows"):
        export_onnx(student, config, rows((4,)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
