"""Exported files of every kind, alone and far from their run: each says what its student says, and runs no code."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import configured
from evaluate_helpers import pixels_of
from runs_helpers import RUN
from safetensors.torch import load_file, save_file
from tiny import refused, settings
from torch import Tensor, nn
from trusted import EVERYTHING

from ensemble_distill import load_student
from ensemble_distill.exporting.program import export_program
from ensemble_distill.exporting.safetensors import export_safetensors
from ensemble_distill.facts import Member
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.runs.trust import Trust
from ensemble_distill.serving.kinds import open_file
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.predict import predict

SUFFIXES = (".onnx", ".pt2", ".safetensors")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def folder(runs_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run with a file of each kind. Do not write to it."""
    made = Path(shutil.copytree(runs_session, tmp_path_factory.mktemp("kinds") / "tiny"))
    export(settings(made), "hydra-s0", program=True, card=False)
    return made


@pytest.fixture
def alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing but copies of the files, and the code of the body; the command runs there."""
    for suffix in SUFFIXES:
        shutil.copy(folder / RUN / f"export/model{suffix}", tmp_path / f"copied{suffix}")
    shutil.copy(folder / "model.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@torch.no_grad()
def said_by_torch(folder: Path, x: Tensor) -> dict[str, Tensor]:
    student = load_student(folder / RUN, trust=True)
    return named_outputs(student.predictive(student(x)))


def rewritten(path: Path, change: Change, member: str = "models/model.json") -> None:
    """Change a JSON document in a program, whose checksums are made anew."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in content if name.endswith(member))
    record = json.loads(content[name])
    change(record)
    content[name] = json.dumps(record).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for one, text in content.items():
            archive.writestr(one, text)


# --- what they say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_says_what_its_student_says(folder: Path, alone: Path, suffix: str) -> None:
    x = pixels_of(folder / "data/test.npz")
    file = open_file(Path(f"copied{suffix}"), trust=EVERYTHING)
    wanted, found = said_by_torch(folder, x), file.run(x.numpy())
    assert file.outputs == tuple(wanted)
    assert file.heads == 3
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=2e-5, err_msg=name)
        assert found[name].dtype == np.float32
    assert file.card.made_from is not None
    assert file.card.made_from.calibration is not None, "it is said calibrated"


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_predict_writes_the_same_of_every_kind(folder: Path, alone: Path, suffix: str) -> None:
    data = str(folder / "data/test.npz")
    wanted = predict("copied.onnx", data, heads=True).rows
    found = predict(f"copied{suffix}", data, heads=True, trust=EVERYTHING, batch_size=3).rows
    assert [list(row) for row in found] == [list(row) for row in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, abs=2e-5) if isinstance(value, float) else value), name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_thresholds_of_calibration_rows_are_in_every_kind(folder: Path, tmp_path: Path, suffix: str) -> None:
    here = Path(shutil.copytree(folder, tmp_path / "tiny"))
    rng = np.random.default_rng(3)
    np.savez(here / "data/calibration.npz", x=rng.integers(0, 255, (30, 6, 6), np.uint8), y=np.arange(30) % 3)
    asked = settings(here, {"data.calibration": str(here / "data/calibration.npz")})
    export(asked, "hydra-s0", onnx=True, safetensors=True, program=True, card=False)
    wanted = open_file(here / RUN / "export/model.onnx").card.reference
    known = open_file(here / RUN / f"export/model{suffix}").card.reference
    assert wanted is not None
    assert known == wanted
    rows = predict(
        here / RUN / f"export/model{suffix}",
        str(here / "data/test.npz"),
        coverage=0.8,
        alpha=0.2,
        trust=Trust(here / "runs"),
    ).rows
    assert {"abstains", "conformal_set"} <= rows[0].keys()


def test_a_student_in_the_place_of_rows_is_told_where_it_goes(folder: Path, alone: Path) -> None:
    data = str(folder / "data/test.npz")
    with refused("copied.pt2 is a student", f"edistill predict {data} --model copied.pt2"):
        predict(None, ["copied.pt2", data])
    with refused("copied.onnx", "edistill predict INPUTS --model copied.onnx"):
        predict("copied.pt2", "copied.onnx")


# --- whose code makes a body -------------------------------------------------------------------------------------


def test_weights_need_the_code_of_their_body_and_every_remedy_works(folder: Path, alone: Path) -> None:
    x = pixels_of(folder / "data/test.npz").numpy()
    wanted = open_file(Path("copied.onnx")).run(x)["logits"]
    with refused("copied.safetensors", 'student.model = "model.py:make_body"', "--trust-checkpoints", "--program"):
        open_file(Path("copied.safetensors")).run(x)
    by_settings = open_file(Path("copied.safetensors"), trust=Trust(model=str(alone / "model.py:make_body")))
    np.testing.assert_allclose(by_settings.run(x)["logits"], wanted, atol=2e-5)
    Path("model.py").rename("elsewhere.py")
    with refused("put model.py beside copied.safetensors"):
        open_file(Path("copied.safetensors"), trust=EVERYTHING).run(x)
    Path("elsewhere.py").rename("model.py")
    trusted = open_file(Path("copied.safetensors"), trust=EVERYTHING)
    np.testing.assert_allclose(trusted.run(x)["logits"], wanted, atol=2e-5)


def test_weights_in_a_run_of_ones_own_find_its_code(folder: Path) -> None:
    x = pixels_of(folder / "data/test.npz").numpy()
    file = folder / RUN / "export/model.safetensors"
    assert open_file(file, trust=Trust(folder / "runs")).run(x)["logits"].shape == (10, 3)
    with refused("--trust-checkpoints"):
        open_file(file, trust=Trust(folder / "data")).run(x)


def test_another_body_than_it_was_trained_with_is_refused(folder: Path, alone: Path) -> None:
    text = Path("model.py").read_text()
    Path("model.py").write_text(text.replace("nn.Linear(36, width)", "nn.Linear(36, width, bias=False)"))
    with refused("copied.safetensors", "absent in the student", "--safetensors"):
        open_file(Path("copied.safetensors"), trust=EVERYTHING).run(np.zeros((1, 1, 6, 6), np.float32))


def test_a_body_of_timm_needs_no_code(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    task, members = Classification(("a", "b")), tuple(Member(name, name * 64) for name in "abc")
    name = "test_resnet"
    body = timm.create_model(name, num_classes=0, in_chans=3).eval()
    width = body.num_features
    student = Student(body, Heads(3, width, (), 2), task.members_family(), None, "probabilities").eval()
    to = {"size": [32, 32], "mean": [0.5], "std": [0.5]}
    config = configured(
        task=task,
        members=members,
        heads=3,
        hidden=(),
        kwargs={},
        model=name,
        kind="pixels",
        shape=(3, 32, 32),
        preprocessing=settings_preprocessing(to),
    )
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = named_outputs(student.predictive(student(x)))
    weights = export_safetensors(student, config, tmp_path / "a.safetensors")
    program = export_program(student, config, x, tmp_path / "a.pt2", None)
    for path in (weights, program):
        found = open_file(path).run(x.numpy())
        np.testing.assert_allclose(found["head_logits"], wanted["head_logits"], atol=1e-5)
    held = sum(p.numel() for p in open_file(program).module().parameters())
    assert held == sum(p.numel() for p in student.parameters())


def settings_preprocessing(to: dict[str, Any]) -> Any:
    from ensemble_distill.facts import Preprocessing

    return Preprocessing(size=(to["size"][0], to["size"][1]), mean=tuple(to["mean"] * 3), std=tuple(to["std"] * 3))


# --- programs ----------------------------------------------------------------------------------------------------


class Many(nn.Module):
    """Of each way in which operators take and give: lists, several results, sizes, types, memory formats, blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gru = nn.GRU(24, 8, batch_first=True, bidirectional=True)
        self.attention, self.rounded = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16, bias=False)
        nn.init.eye_(self.rounded.weight)
        self.register_buffer("scale", torch.linspace(1, 2, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).to(memory_format=torch.channels_last) * self.scale
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, b.clamp(min=-float("inf"))], 1).permute(0, 2, 1, 3).reshape(x.shape[0], 6, 24)
        steps, _ = self.gru(x)
        steps, _ = self.attention(steps, steps, steps, need_weights=False)
        with torch.autocast("cpu", enabled=False):
            steps = steps.double().float()
        with torch.autocast("cpu", torch.bfloat16):
            steps = steps + self.rounded(torch.full_like(steps, 1 + 2**-9)).float()  # 1, wherever it is computed
        size = steps.shape[0]
        place = torch.arange(size * 6, device=x.device, dtype=torch.float32).view(size, 6, 1) % 6
        values, at = torch.topk(steps + place / 6, 2, dim=1)
        return torch.cat([values.flatten(1), at.float().flatten(1)], 1)


def test_a_program_is_run_as_torch_runs_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, members = Classification(("a", "b")), tuple(Member(name, name * 64) for name in "abc")
    student = Student(Many(), Heads(3, 64, (), 2), task.members_family(), None, "probabilities").eval()
    config = configured(
        task=task,
        members=members,
        heads=3,
        hidden=(),
        kwargs={},
        model="m",
        kind="pixels",
        shape=(1, 6, 6),
        preprocessing=settings_preprocessing({"size": [6, 6], "mean": [0.5], "std": [0.5]}),
    )
    path = export_program(student, config, torch.randn(5, 1, 6, 6), tmp_path / "model.pt2", None)
    theirs, ours = torch.export.load(path).module(), open_file(path).module()
    for rows in (1, 2, 7):
        x = torch.randn(rows, 1, 6, 6)
        with torch.no_grad():
            said = list(zip(theirs(x), ours(x), strict=True))
            assert said
            for wanted, found in said:
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)  # sums may go in another order


def test_nothing_is_unpickled_or_evaluated(folder: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError("a program is data")

    for owner, name in ((torch.export, "load"), (torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(owner, name, never)
    x = pixels_of(folder / "data/test.npz").numpy()
    assert open_file(Path("copied.pt2")).run(x)["logits"].shape == (10, 3)


def call(target: str) -> Change:
    def change(record: dict[str, Any]) -> None:
        record["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.relu.__class__",
        "torch.ops.higher_order.cond",
        "_operator.methodcaller",
        "math.__loader__",
        "builtins.eval",
    ],
)
def test_what_is_no_operator_of_tensors_is_refused_by_name(alone: Path, target: str) -> None:
    rewritten(Path("copied.pt2"), call(target))
    with refused("copied.pt2", target, "--safetensors"):
        open_file(Path("copied.pt2"))


def test_pickled_weights_are_not_read(alone: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        next(iter(record["config"].values()))["use_pickle"] = True

    rewritten(Path("copied.pt2"), change, "model_weights_config.json")
    with refused("copied.pt2", "pickled"):
        open_file(Path("copied.pt2"))


def test_weights_of_more_numbers_than_there_are_bytes_are_refused(alone: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        next(iter(record["config"].values()))["tensor_meta"]["sizes"][0]["as_int"] = 10**9

    rewritten(Path("copied.pt2"), change, "model_weights_config.json")
    with refused("copied.pt2", "damaged", "1000000000"):
        open_file(Path("copied.pt2"))


def test_a_graph_that_fails_on_rows_is_told_in_one_message(alone: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        nodes = record["graph_module"]["graph"]["nodes"]
        linear = next(node for node in nodes if "linear" in node["target"])
        linear["inputs"][1]["arg"]["as_tensor"]["name"] = "nothing_of_that_name"

    rewritten(Path("copied.pt2"), change)
    with refused("copied.pt2 fails on 1 rows of shape (1, 6, 6)", "nothing_of_that_name", "Export the run again"):
        open_file(Path("copied.pt2")).run(np.zeros((1, 1, 6, 6), np.float32))


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_refused_by_name(alone: Path, suffix: str) -> None:
    path = Path(f"copied{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with refused(path.name, "damaged", "edistill export"):
        open_file(path)
    path.write_bytes(path.read_bytes()[: len(content) // 3])
    with refused(path.name, "edistill export"):
        open_file(path)


@pytest.mark.parametrize("real", SUFFIXES)
@pytest.mark.parametrize("called", SUFFIXES)
def test_a_file_of_another_name_is_told_by_its_content_and_renaming_works(alone: Path, real: str, called: str) -> None:
    path = Path(f"copied{real}").rename(f"it{called}")
    if real == called:
        open_file(path)
        return
    with refused(f"it{called} is called {called}", f"Rename it to it{real}."):
        open_file(path)
    open_file(path.rename(f"it{real}"))


def test_files_of_others_are_refused(folder: Path, alone: Path) -> None:
    save_file(load_file(folder / "teachers/member-0.safetensors"), "timm.safetensors", {"format": "pt"})
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(2, 2),)), "theirs.pt2")
    for name in ("checkpoint.pt2", "checkpoint.safetensors", "checkpoint.onnx"):
        torch.save({"weight": torch.zeros(2)}, name)
        with refused(name, "checkpoint of torch", "teachers.path"):
            open_file(Path(name))
    with refused("timm.safetensors", "not written by edistill", "--safetensors", "teachers.path"):
        open_file(Path("timm.safetensors"))
    with refused("theirs.pt2", "not written by edistill", "--program", "teachers.path"):
        open_file(Path("theirs.pt2"))
    with refused("student.safetensors", "weights of a run", str(folder / RUN)):
        open_file(folder / RUN / "student.safetensors")
    with refused("model.bin", ".onnx, .pt2 or .safetensors", "Rename it to model.pt2"):
        open_file(Path(shutil.copy("copied.pt2", "model.bin")))
    with refused("nothing.pt2", "edistill export --program"):
        open_file(Path("nothing.pt2"))
    with refused("--changed", "copied.pt2"):
        open_file(Path("copied.pt2"), changed=True)
