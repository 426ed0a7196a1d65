"""Graphs in less precision: what they hold, what they cost, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from configs import configured
from evaluate_helpers import pixels_of
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from runs_helpers import RUN
from tiny import contents, refused, refused_and_kept, settings
from torch import Tensor, nn

from ensemble_distill.evaluation import price
from ensemble_distill.exporting.onnx import export_onnx
from ensemble_distill.exporting.precision import in_float16, in_int8
from ensemble_distill.facts import Member
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.serving.served import Served
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.multi_label import MultiLabel
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.predict import predict

FILES = {"model-fp16.onnx": onnx.TensorProto.FLOAT16, "model-int8.onnx": onnx.TensorProto.INT8}


@pytest.fixture
def loose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tiny student loses is allowed."""
    monkeypatch.setattr(price, "MOST_LOSS", 10.0)
    monkeypatch.setattr(price, "MOST_SHIFT", 10.0)


def said(path: Path, x: NDArray[np.float32]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def test_both_stand_beside_the_file_and_the_table_is_true(runs: Path, loose: None) -> None:
    found = export(settings(runs), "hydra-s0", fp16=True, int8=True)
    folder = runs / RUN / "export"
    assert [path.name for path in found.files] == ["model.onnx", *FILES]
    x, y = pixels_of(runs / "data/validation.npz").numpy(), np.load(runs / "data/validation.npz")["y"]
    plain = said(folder / "model.onnx", x)
    for one in found.prices:
        outputs = said(folder / one.file, x)
        assert {values.dtype for values in outputs.values()} == {np.dtype(np.float32)}
        assert one.figures["nll"] == pytest.approx(-outputs["logits"][np.arange(len(y)), y].mean(), abs=1e-5)
        assert one.bytes == (folder / one.file).stat().st_size
        for name, values in outputs.items():
            assert one.apart[name] == pytest.approx(np.abs(values - plain[name]).max(), abs=1e-6)
        p, log_p = np.exp(plain["logits"]), plain["logits"]
        assert one.kl == pytest.approx((p * (log_p - outputs["logits"])).sum(1).mean(), abs=1e-5)
        moved = np.abs(outputs["model_uncertainty"] - plain["model_uncertainty"]).sum()
        assert one.shift == pytest.approx(moved / plain["model_uncertainty"].sum(), abs=1e-4)
        assert one.latency_ms > 0
        assert 0 <= one.worth["prediction"] <= 3
    for name, kind in FILES.items():
        model = onnx.load(folder / name)
        types = {weight.data_type for weight in model.graph.initializer if len(weight.dims) > 1}
        assert kind in types
        assert onnx.TensorProto.FLOAT in types, "the heads"
        own = inspect(folder / name)
        assert own["precision"] == {"model-fp16.onnx": "float16", "model-int8.onnx": "int8"}[name]
        assert own["members"] == inspect(folder / "model.onnx")["members"]
        rows = predict(folder / name, str(runs / "data/test.npz")).rows
        assert len(rows) == 10
        assert name in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("limits", "told"), [((-1.0, 10.0), ("nats", "-1.0")), ((10.0, -0.5), ("model uncertainty", "-50%"))]
)
def test_what_loses_more_than_stated_is_refused_unless_forced(
    runs: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[float, float], told: tuple[str, str]
) -> None:
    for name, value in zip(("MOST_LOSS", "MOST_SHIFT"), limits, strict=True):
        monkeypatch.setattr(price, name, value)
    export(settings(runs), "hydra-s0", onnx=True, card=False)
    with refused_and_kept(runs / RUN, "--fp16", "--force", *told):
        export(settings(runs), "hydra-s0", fp16=True, card=False)
    export(settings(runs), "hydra-s0", fp16=True, force=True, card=False)
    assert (runs / RUN / "export/model-fp16.onnx").is_file()


def test_numbers_that_are_not_finite_are_refused_by_row_and_file_and_pass_no_limit(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As half precision has them beyond 65,504."""
    run = Served.run

    def overflowing(self: Served, x: Any) -> Any:
        found = run(self, x)
        if self.card.precision == "float16" and np.array_equal(x[:20], validation[:20]):
            found["head_logits"][3] = np.nan
        return found

    validation = pixels_of(runs / "data/validation.npz").numpy()
    monkeypatch.setattr(Served, "run", overflowing)
    export(settings(runs), "hydra-s0", onnx=True, card=False)
    with refused_and_kept(runs / RUN, "--fp16", "model-fp16.onnx", "head_logits", "row 3"):
        export(settings(runs), "hydra-s0", fp16=True, force=True, card=False)
    fine = price.Price("model.onnx", 9, {"nll": 0.5}, {}, 1.0, 9, {}, 0.0, 0.0)
    price.refuse_dear(fine, fine, "--fp16")
    for key, value in {"figures": {"nll": math.nan}, "kl": math.nan, "shift": math.nan}.items():
        with refused("--fp16", "nan"):
            price.refuse_dear(replace(fine, **{key: value}), fine, "--fp16")


def test_what_goes_with_nothing_is_refused(runs: Path) -> None:
    with refused("--force", "--int8"):
        export(settings(runs), "hydra-s0", onnx=True, force=True)
    with refused("--int8", "--ensemble"):
        export(settings(runs), ensemble=True, int8=True)


def test_without_rows_to_measure_on_nothing_is_written(runs: Path) -> None:
    before = contents(runs / RUN).keys()
    with refused("data.validation"):
        export(settings(runs, {"data.validation": None}), "hydra-s0", fp16=True, card=False)
    with refused("data.train"):
        export(settings(runs, {"data.train": None}), "hydra-s0", int8=True, card=False)
    assert contents(runs / RUN).keys() == before


# --- any student ------------------------------------------------------------------------------------------------


def student_of(task: Any, family: Any, heads: int, body: nn.Module) -> tuple[Student, Any]:
    members = tuple(Member(name, name * 64, output=task.outputs[0]) for name in "abc")
    config = configured(
        task=task, members=members, heads=heads, hidden=(), kwargs={}, model="m", shape=(6,), kind="features",
        family=family,
    )  # fmt: skip
    torch.manual_seed(0)
    student = Student(body, Heads(heads, 8, (), family.width(len(task.names))), family, None, "probabilities")
    return student.eval(), config


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())


CASES = {
    "regression": (Regression(), 3),
    "multi-label": (MultiLabel(("a", "b", "c")), 3),
    "dirichlet": (Classification(("a", "b")), 1),
    "one head": (Classification(("a", "b")), 1),
}


def rows_of(seed: int, count: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_students_of_every_task_say_nearly_the_same(tmp_path: Path, name: str) -> None:
    task, heads = CASES[name]
    family = DirichletFamily() if name == "dirichlet" else task.members_family()
    student, config = student_of(task, family, heads, layers())
    x = rows_of(1, 64)
    path = export_onnx(student, config, x, tmp_path / "model.onnx")
    plain, model = said(path, x.numpy()), onnx.load(path)
    batches = [{"input": x.numpy()}]  # of other rows some lie beyond the range, and are cut off
    for made, near in ((in_float16(model), 5e-3), (in_int8(model, batches), 0.2)):
        onnx.checker.check_model(made, full_check=True)
        onnx.save(made, tmp_path / "small.onnx")
        found = said(tmp_path / "small.onnx", x.numpy())
        assert found.keys() == plain.keys()
        for output, values in found.items():
            assert values.dtype == np.float32
            scale = np.abs(plain[output]).max()
            assert_allclose(values, plain[output], rtol=0, atol=near * scale, err_msg=output)
            assert not np.array_equal(values, plain[output]), "it is another graph"


@pytest.mark.thorough
def test_a_student_of_heads_alone_is_refused(tmp_path: Path) -> None:
    task = Classification(("a", "b"))
    student, config = student_of(task, task.members_family(), 3, nn.Linear(6, 8).requires_grad_(False))
    student.body = nn.Sequential(nn.Flatten(), nn.ZeroPad1d((0, 2)))
    model = onnx.load(export_onnx(student, config, rows_of(1, 4), tmp_path / "model.onnx"))
    for flag, make in (("--fp16", in_float16), ("--int8", lambda one: in_int8(one, []))):
        with refused(flag, "MatMul"):
            make(model)


def test_the_file_is_told_stale_when_its_run_is_calibrated_anew(runs: Path, loose: None) -> None:
    from ensemble_distill.runs.exports import stale_exports
    from ensemble_distill.workflows.calibrate import calibrate

    export(settings(runs), "hydra-s0", fp16=True)
    file = runs / RUN / "export/model-fp16.onnx"
    assert file not in stale_exports(runs / RUN)
    report = calibrate(settings(runs), "hydra-s0", remove=True)
    assert "--fp16" in report.export_again
    assert file in stale_exports(runs / RUN)
    assert Served(file).card.precision == "float16"
