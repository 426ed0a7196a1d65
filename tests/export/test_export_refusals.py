"""Exports in safetensors, and what the command refuses."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_helpers import config_of, student_around
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import ensemble_distill
from ensemble_distill import load_student
from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.safetensors import export_safetensors
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.runtime.seals import read_sealed_json
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.export import export


@pytest.fixture(scope="module")
def real(digits_session: Path) -> Tensor:
    """Every test row of the digits as the students see it."""
    x = np.load(digits_session / "data/test.npz")["x"]
    return torch.from_numpy((x[:, None].astype(np.float32) / 255 - 0.5) / 0.5)


# --- safetensors ------------------------------------------------------------------------------------------------


def test_safetensors_rebuild_the_student(digits_session: Path, real: Tensor) -> None:
    run = digits_session / "runs/hydra-s0"
    path = run / "export/model.safetensors"
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["edistill"])
    beside, sealed = read_sealed_json(path.parent / "config.json")
    assert sealed
    assert record == beside
    config = StudentConfig.from_json(record)
    assert config == Run.open(run).config
    student = config.architecture.build(load_factory(f"{digits_session / 'model.py'}:make_body", "student.model"))
    student.load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(student.eval()(real), load_student(run, trust=True)(real))


def test_tied_weights_leave_as_copies(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    body[1].weight = body[0].weight
    config = config_of((4,))
    student = student_around(body, 4, config)
    back = load_file(export_safetensors(student, config, tmp_path / "model.safetensors"))
    assert torch.equal(back["body.0.weight"], back["body.1.weight"])
    assert back.keys() == student.state_dict().keys()


def test_safetensors_that_read_back_otherwise_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of((4,))
    student = student_around(nn.Linear(4, 6), 6, config)

    def worn(path: Path) -> dict[str, Tensor]:
        return {name: tensor + 1 for name, tensor in load_file(path).items()}

    monkeypatch.setattr("ensemble_distill.exporting.safetensors.load_file", worn)
    with pytest.raises(
        EdistillError, match=r"does not read back as it was written, so it stays as it was\. Check the disk"
    ):
        export_safetensors(student, config, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


# --- the command's own refusals ---------------------------------------------------------------------------------


def test_an_export_needs_rows_to_verify_on(digits: Path, settings_of: Callable[..., Settings]) -> None:
    whole = settings_of(digits)
    bare = whole.model_copy(update={"data": type(whole.data)()})
    with pytest.raises(EdistillError, match=r"verified on real rows, and no data is configured\. Set data\.validation"):
        export(bare, onnx=True)
    (written,) = export(bare, safetensors=True).files
    assert written.name == "model.safetensors"


def test_rows_of_another_shape_do_not_verify_it(digits: Path, settings_of: Callable[..., Settings]) -> None:
    np.savez(digits / "data/validation.npz", x=np.zeros((3, 8, 8, 2), np.uint8), y=np.zeros(3, int))
    with pytest.raises(EdistillError, match=r"takes inputs of shape \(1, 8, 8\), but the configured data gives \(2, 8"):
        export(settings_of(digits), onnx=True)


def test_an_unfinished_run_is_not_exported(digits: Path, settings_of: Callable[..., Settings]) -> None:
    (digits / "runs/hydra-s0/student.safetensors").unlink()
    with pytest.raises(EdistillError, match=r"holds an unfinished run \(student\.safetensors is missing\)"):
        export(settings_of(digits), "hydra-s0", onnx=True)
    with pytest.raises(EdistillError, match=r"holds no finished run\. Run edistill train first"):
        export(settings_of(digits), onnx=True)


def test_an_exported_graph_tells_nothing_of_the_machine(digits_session: Path) -> None:
    path = digits_session / "runs/hydra-s0/export/model.onnx"
    content = path.read_bytes()
    package = Path(ensemble_distill.__file__).parent
    places = (Path.home(), Path.cwd(), digits_session, package, sysconfig.get_paths()["purelib"])
    for name in (*map(str, places), "stack_trace", "site-packages", "pkg.torch"):
        assert name.encode() not in content
    model = onnx.load_from_string(content)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert {entry.key.partition(".")[0] for entry in model.metadata_props} == {"edistill"}
