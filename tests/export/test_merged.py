"""A student as one plain timm model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from configs import configured
from runs_helpers import RUN
from tiny import refused, refused_and_kept, settings
from torch import Tensor

from ensemble_distill.cli.inspected import sheet_of
from ensemble_distill.exporting.merged import merged, refuse_unmergeable, write_merged
from ensemble_distill.facts import Calibration, MadeFrom, Member, Preprocessing
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.exports import stale_exports
from ensemble_distill.runs.run import load_student
from ensemble_distill.runs.verifying import run_problems
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train

MADE_FROM = MadeFrom("0" * 64, None)


def made(**more: Any) -> tuple[StudentConfig, Student]:
    config = configured(
        **{
            "task": Classification(("cat", "dog", "owl")),
            "members": tuple(Member(name, name * 64) for name in "abc"),
            "heads": 3,
            "hidden": (),
            "kwargs": {},
            "model": "test_resnet",
            "shape": (3, 32, 32),
            "kind": "pixels",
            "preprocessing": Preprocessing((32, 32), (0.4, 0.5, 0.6), (0.2,)),
            **more,
        }
    )
    torch.manual_seed(0)
    return config, config.architecture.build().eval()


def rows() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.thorough
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 5.0)])
def test_timm_loads_it_and_it_says_the_mean_of_the_heads(tmp_path: Path, weights: tuple[float, ...] | None) -> None:
    seen = Preprocessing((32, 32), (0.4, 0.5, 0.6), (0.2,), interpolation="bicubic", crop_pct=0.9, crop_mode="border")
    config, student = made(weights=weights, preprocessing=seen)
    student.calibration = Calibration(temperature=1.7, spread=1.3)
    folder = write_merged(merged(student, config.architecture), student, config, rows(), tmp_path / "merged", MADE_FROM)
    back = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    share = torch.tensor(weights or (1.0, 1.0, 1.0))
    with torch.no_grad():
        found = back(rows()).softmax(-1)
        wanted = ((share / share.sum())[:, None] * student(rows())).sum(1).div(1.7).softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    data = timm.data.resolve_data_config({}, model=back)
    assert tuple(tuple(data[key]) for key in ("input_size", "mean", "std")) == (
        (3, 32, 32),
        (0.4, 0.5, 0.6),
        (0.2, 0.2, 0.2),
    )
    assert tuple(data[key] for key in ("interpolation", "crop_pct", "crop_mode")) == ("bicubic", 0.9, "border")
    assert list(back.pretrained_cfg["label_names"]) == ["cat", "dog", "owl"]


@pytest.mark.thorough
def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    config, student = made()
    with torch.no_grad():
        student.heads.layers[0].bias[0, 0] = torch.nan
    with refused("differ from the mean of the heads' by nan", "--merge-heads"):
        model = merged(student, config.architecture)
        write_merged(model, student, config, rows(), tmp_path / "merged", MADE_FROM)
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_where_members_pool_by_logits_nothing_is_lost() -> None:
    config, student = made(average="logits")
    with torch.no_grad():
        pooled = student.predictive(student(rows())).summary().mean
        torch.testing.assert_close(merged(student, config.architecture)(rows()).softmax(-1), pooled)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "model.py:make_body"}, "model.py:make_body"),
        ({"bodies": 2}, "2 bodies"),
        ({"hidden": (5,)}, "[5]"),
        ({"form": "rank-one"}, "rank-one"),
        ({"kind": "features", "shape": (6,), "preprocessing": None}, "classification"),
    ],
)
def test_what_is_no_plain_timm_model_is_refused(change: dict[str, Any], told: str) -> None:
    config, _ = made()
    with refused("--merge-heads", told):
        what = replace(config.architecture, **change)
        refuse_unmergeable(what, "runs/x", what.model)


def test_a_run_with_a_body_of_ones_own_is_refused_and_nothing_is_written(runs: Path) -> None:
    with refused_and_kept(runs / RUN, "--merge-heads", f"its body is {runs.resolve() / 'model.py'}:make_body"):
        export(settings(runs), "hydra-s0", onnx=True, safetensors=True, merge_heads=True)


@pytest.mark.thorough
def test_a_trained_run_is_merged_before_anything_else_of_it_was_exported(
    digits: Path, settings_of: Callable[..., Settings]
) -> None:
    chosen = {"student.model": "test_resnet", "student.kwargs": {}, "student.init": None, "train.epochs": 1}
    given = settings_of(digits, {**chosen, "output.name": "resnet"})
    run = train(given).folder
    exported = export(given, "resnet", merge_heads=True)
    assert run / "export" / "merged" in exported.files
    x = torch.randn(3, 1, 8, 8)
    back = timm.create_model(f"local-dir:{run / 'export' / 'merged'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(x), load_student(run, trust=True)(x).mean(1), rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_it_is_told_stale_and_damaged_as_other_files_are(
    digits: Path, settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"student.model": "test_resnet", "student.kwargs": {}, "student.init": None, "train.epochs": 1}
    given = settings_of(digits, {**chosen, "output.name": "resnet"})
    run = train(given).folder
    folder = export(given, "resnet", merge_heads=True).files[0]
    assert stale_exports(run) == ()
    assert "`merged`" in (run / "export/README.md").read_text()

    report = calibrate(given, "resnet")
    assert report.stale == (folder,)
    assert report.export_again == f"edistill export {run} --merge-heads"
    assert inspect(run)["stale"] == ["export/merged"]
    told = inspect(folder)
    assert "calibrated otherwise" in told["facts"]["stale"]
    assert told["next"] == report.export_again
    shown = sheet_of(str(run), inspect(run))
    assert dict(shown.facts)["exported"] == "export/merged"
    warned: list[str] = []
    monkeypatch.setattr(Silent, "warn", lambda _, text: warned.append(text))
    evaluate(given, "resnet")
    assert [text for text in warned if "merged is stale" in text]

    export(given, "resnet", merge_heads=True)
    assert stale_exports(run) == ()
    assert run_problems(run) == []
    assert "stale" not in inspect(folder)["facts"]

    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (problem,) = run_problems(run)
    assert "merged is damaged" in problem
    assert f"edistill export {run} --merge-heads" in problem
    assert stale_exports(run) == (folder,)
    (folder / "model.safetensors").unlink()
    assert len(run_problems(run)) == 1
