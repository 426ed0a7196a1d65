"""A student as a program of torch.export."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import configured
from evaluate_helpers import pixels_of
from runs_helpers import RUN
from tiny import refused, refused_and_kept, settings
from torch import Tensor, nn

from ensemble_distill import load_student
from ensemble_distill.exporting.program import export_program
from ensemble_distill.facts import Member
from ensemble_distill.predictive.gaussian import GaussianFamily
from ensemble_distill.runs.exports import program_metadata, stale_exports
from ensemble_distill.serving.program import _tensor
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect


@pytest.fixture
def program(runs: Path) -> Path:
    (path,) = export(settings(runs), "hydra-s0", program=True, card=False).files
    assert path.name == "model.pt2"
    return path


@pytest.mark.thorough
def test_it_says_what_the_student_says(program: Path, runs: Path) -> None:
    about = {"edistill.json": ""}
    module = torch.export.load(program, extra_files=about).module()
    names = json.loads(json.loads(about["edistill.json"])["outputs"])
    student, x = load_student(runs / RUN, trust=True), pixels_of(runs / "data/test.npz")
    for batch in (1, 3, 10):
        with torch.no_grad():
            told, found = student.predictive(student(x[:batch])), dict(zip(names, module(x[:batch]), strict=True))
        torch.testing.assert_close(found["head_logits"], told.logits)
        torch.testing.assert_close(found["logits"].exp(), told.summary().mean)
        torch.testing.assert_close(found["model_uncertainty"], told.summary().model)


@pytest.mark.thorough
def test_it_says_whose_it_is_and_nothing_of_the_machine(program: Path, runs: Path) -> None:
    record = inspect(program)
    assert [member["name"] for member in record["members"]] == ["member-0", "member-1", "member-2"]
    assert record["kind"] == "program"
    assert "stale" not in record
    assert str(Path(__file__).parents[2]).encode() not in program.read_bytes()
    report = calibrate(settings(runs), "hydra-s0", remove=True)
    assert "--program" in report.export_again
    assert program.relative_to(runs) in [
        path.relative_to(runs) for path in map(Path.absolute, stale_exports(runs / RUN))
    ]
    assert "stale" in inspect(program)


@pytest.mark.thorough
def test_a_damaged_one_is_refused_by_name(program: Path) -> None:
    content = bytearray(program.read_bytes())
    content[len(content) // 3] ^= 1
    program.write_bytes(content)
    with refused("model.pt2", "damaged", "--program"):
        inspect(program)


def test_a_compressed_archive_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/edistill.json", "{}")
    with pytest.raises(ValueError, match="compressed"):
        program_metadata(tmp_path / "model.pt2")


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_body_that_torch_cannot_export_is_refused(tmp_path: Path) -> None:
    task, members = Classification(("a", "b")), tuple(Member(name, name * 64) for name in "abc")
    config = configured(
        task=task, members=members, heads=3, hidden=(), kwargs={}, model="m", shape=(6,), kind="features"
    )
    student = Student(Branching(), Heads(3, 6, (), 2), task.members_family(), None, "probabilities").eval()
    with refused("program", "--safetensors"):
        export_program(student, config, torch.ones(2, 6), tmp_path / "model.pt2", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("level", "spread", "rows"), [(0.0, 1e-6, 1), (1e6, 1.0, 4)])
def test_one_that_says_something_else_of_one_row_or_of_several_is_refused_in_any_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: float, spread: float, rows: int
) -> None:
    task, members = Regression(), tuple(Member(name, name * 64, output="mean") for name in "abc")
    family = GaussianFamily(level, spread)
    config = configured(
        task=task, members=members, heads=3, hidden=(), kwargs={}, model="m", shape=(6,), kind="features", family=family
    )
    torch.manual_seed(0)
    student = Student(nn.Linear(6, 8), Heads(3, 8, (), 2), family).eval()
    x = torch.randn(4, 6)
    export_program(student, config, x, tmp_path / "good.pt2", None)

    class Off:
        def __init__(self, program: Any) -> None:
            self.program = program

        def module(self) -> Any:
            return lambda x: [values + spread * (len(x) == rows) for values in self.program.module()(x)]

    load = torch.export.load
    monkeypatch.setattr(torch.export, "load", lambda path: Off(load(path)))
    with refused("The program's mean differs", "nothing was written", "--safetensors"):
        export_program(student, config, x, tmp_path / "model.pt2", None)


def test_a_tensor_is_read_by_its_strides_from_its_place_in_the_storage() -> None:
    numbers = np.arange(24, dtype=np.float32)

    def told(start: int) -> dict[str, Any]:
        sizes, strides = ([{"as_int": number} for number in numbers] for numbers in ((2, 3), (1, 4)))
        return {"dtype": 7, "sizes": sizes, "strides": strides, "storage_offset": {"as_int": start}}

    assert _tensor(numbers.tobytes(), told(5)).tolist() == [[5, 9, 13], [6, 10, 14]]
    assert _tensor(numbers.tobytes(), told(14))[1, 2] == 23
    with pytest.raises(ValueError, match="fewer bytes"):
        _tensor(numbers.tobytes(), told(15))


def test_the_ensemble_is_no_program(runs: Path) -> None:
    with refused_and_kept(runs, "--program", "--ensemble"):
        export(settings(runs), ensemble=True, program=True)
