"""What is refused of exported ensembles: wishes of a run, folders of others, members that one graph cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ensemble_export_helpers import ROWS, exported, opened, said_by
from tiny import refused, settings
from torch import Tensor, nn

from ensemble_distill.exporting import ensemble as ensemble_export
from ensemble_distill.exporting.members import Seen, reseen
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.workflows import export_ensemble
from ensemble_distill.workflows.export import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve linear members, which run in one batch, and their export. Do not write to it."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("ensemble") / "tiny", members=12, rows=ROWS)
    exported(folder)
    return folder


# --- what is refused --------------------------------------------------------------------------------------------


def test_what_is_asked_of_a_run_alone_is_refused(folder: Path) -> None:
    with refused("--safetensors is for a student", "Leave out"):
        export(settings(folder), ensemble=True, onnx=True, safetensors=True)
    with refused("no run", "Leave hydra-s0 or --ensemble out"):
        export(settings(folder), "hydra-s0", ensemble=True, onnx=True)
    with refused("No format"):
        export(settings(folder), ensemble=True)


def test_a_folder_of_somebody_elses_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble/notes.txt").write_text("mine")
    with refused("ensemble", "not an exported ensemble", "notes.txt", "output.runs"):
        export(settings(folder, {"output.runs": str(tmp_path / "runs")}), ensemble=True, onnx=True)
    assert [path.name for path in (tmp_path / "ensemble").iterdir()] == ["notes.txt"]


def test_a_member_that_is_no_network_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_modules(*given: Any) -> list[Any]:
        members = open_members(*given)
        members[1].module = None  # type: ignore[misc]
        return list(members)

    open_members = export_ensemble.open_members
    monkeypatch.setattr(export_ensemble, "open_members", without_modules)
    with refused("Member member-1 is not a network of torch", "teachers.path"):
        exported(folder)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Preprocessing((8, 8), (0.5,), (0.5,)), "size = (6, 6), and m1 with (8, 8)"),
        (Preprocessing((6, 6), (0.5,), (0.5,), crop_pct=0.9), "crop_pct = 1.0, and m1 with 0.9"),
        (Preprocessing((6, 6), (0.5,), (0.5,), "bicubic"), "interpolation = bilinear, and m1 with bicubic"),
        (Preprocessing((6, 6), (0.5,), (0.5,), crop_mode="squash"), "crop_mode = center, and m1 with squash"),
        (Preprocessing((6, 6), (0.5,) * 3, (0.5,) * 3), "mean"),
    ],
)
def test_members_that_one_input_cannot_serve_are_refused(other: Preprocessing, told: str) -> None:
    members, modules = opened(["mlp", "mlp"], [Preprocessing((6, 6), (0.5,), (0.5,)), other])
    with refused("Member m0", told, "one graph has one input", "teachers.path"):
        ensemble_export.ensemble_module(Classification(("a", "b")), "pixels", members, modules, torch.zeros(2, 1, 6, 6))


def test_a_border_has_the_color_of_one_mean() -> None:
    """Where borders are filled, another mean is another picture, and another deviation is not."""
    first = Preprocessing((6, 6), (0.5,), (0.5,), crop_mode="border")
    for other, told in ((replace(first, std=(0.2,)), None), (replace(first, mean=(0.4,)), "mean = (0.5,), and m1")):
        members, _ = opened(["mlp", "mlp"], [first, other])
        if told is None:
            assert isinstance(reseen(members)[1], Seen)
        else:
            with refused("Member m0", told, "one graph has one input"):
                reseen(members)


def test_a_sparse_tensor_is_read_as_in_the_pass() -> None:
    class Sparse(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).to_sparse()

    members, modules = opened(["mlp", "mlp"], [None, None])
    x, task = torch.randn(4, 36), Classification(("a", "b", "c"))
    dense, sparse = (
        ensemble_export.ensemble_module(task, "features", members, these, x)
        for these in (modules, [Sparse(module) for module in modules])
    )
    for found, wanted in zip(sparse(x), dense(x), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.thorough
def test_a_member_that_torch_cannot_export_is_named(tmp_path: Path) -> None:
    members, modules = opened(["mlp", "branching"], [None, None])
    x = torch.randn(4, 36)
    task = Classification(("a", "b", "c"))
    module = ensemble_export.ensemble_module(task, "features", members, modules, x)
    with refused("torch cannot export member m1 to ONNX", "Could not guard", "teachers.model", "student"):
        ensemble_export.export_ensemble(module, x, said_by(members, modules, [x, x]), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_file_that_disagrees_with_the_members_is_not_written(tmp_path: Path) -> None:
    members, modules = opened(["mlp", "mlp"], [None, None])
    x = torch.randn(4, 36)
    module = ensemble_export.ensemble_module(Classification(("a", "b", "c")), "features", members, modules, x)
    z = said_by(members, modules, [x, x])
    z[2, 1, 0] += 1e-3
    with refused("differs from torch's by", "4 real rows", "serve a student"):
        ensemble_export.export_ensemble(module, x, z, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_members_that_compute_in_bfloat16_are_refused(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                said: Tensor = self.layers(x)
            return said.float()

    member, x = Member("m0", "0" * 64), torch.randn(4, 1, 6, 6)
    modules = [Halves().eval()]
    preprocessing = Preprocessing((6, 6), (0.5,), (0.5,))
    members = [replace(member, preprocessing=preprocessing)]
    module = ensemble_export.ensemble_module(Classification(("a", "b", "c")), "pixels", members, modules, x)
    with refused("onnxruntime does not run what torch exported", "bfloat16", "float32", "torch.autocast"):
        ensemble_export.export_ensemble(module, x, said_by(members, modules, [x]), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
