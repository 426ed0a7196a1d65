"""What a member or a student says of a row follows from that row alone, or it is refused before it is relied on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import tried
from numpy.testing import assert_array_equal
from safetensors.torch import load_file, save_file
from tiny import contents, make_folder, refused, refused_and_kept, settings
from torch import Tensor, nn
from torch.nn import functional

from ensemble_distill.cache.reader import Cache
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.own_row import ROWS, Scale, find_change, some_rows
from ensemble_distill.students.own_row import refuse_dependent_body
from ensemble_distill.teachers.trial import DRAWN, MASK, MASKED
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

# {mixing} stands between the layers of members and bodies
SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Mixing(nn.Module):
    def __init__(self, width):
        super().__init__()
        {init}

    def forward(self, x):
        return {forward}


def make_teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), Mixing(16), nn.Linear(16, 3))


def make_body():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), Mixing(16))
"""
RANDOM, BATCH = "draws random numbers", "depends on the rest of the batch"
NORM = "self.norm = nn.BatchNorm1d(width, affine=False, {}track_running_stats={})"
MIXINGS = {
    "dropout": ("pass", "F.dropout(x)", RANDOM),
    "faint dropout": ("pass", "F.dropout(x, 0.02)", RANDOM),
    "state": ("self.asked = 0.0", "x * (1 + self.count())", RANDOM),
    "batch statistics": (NORM.format("", False), "self.norm(x)", BATCH),
    "the batch's mean": ("pass", "x - x.mean(0)", BATCH),
    "the row before": ("pass", "x + x.roll(1, 0)", BATCH),
    "the rows before": ("pass", "x.cumsum(0)", BATCH),  # of which the first has none
}
RUN = {"views.transform": "crop-flip", "train.epochs": 1}
DATA = {"train": 24, "validation": 24, "test": 30}


def source(name: str) -> str:
    init, forward, _ = MIXINGS[name]
    counting = "\n    def count(self):\n        self.asked += 0.1\n        return self.asked\n"
    text = SOURCE.format(init=init, forward=forward)
    return text.replace("\n\ndef make_teacher", f"{counting}\n\ndef make_teacher") if name == "state" else text


def good(init: str = "pass", forward: str = "x") -> str:
    return SOURCE.format(init=init, forward=forward)


def module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Identity(), nn.Linear(16, 3))


def folder_of(folder: Path, text: str, members: int = 2) -> Path:
    make_folder(folder, 0, DATA)
    (folder / "model.py").write_text(text)
    (folder / "teachers").mkdir()
    for index in range(members):
        state = {name: 3 * weight for name, weight in module(index).state_dict().items()}
        save_file(state, folder / "teachers" / f"member-{index}.safetensors")
    return folder


def now(folder: Path, text: str) -> dict[str, str]:
    """Settings by which members and bodies are made by another text. A file is imported once: it is another."""
    file = folder / f"version-{len(list(folder.glob('version-*')))}" / "model.py"
    file.parent.mkdir()
    file.write_text(text)
    return {"teachers.model": f"{file}:make_teacher", "student.model": f"{file}:make_body"}


# --- members ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXINGS)
def test_such_a_member_is_refused_before_the_pass(tmp_path: Path, name: str) -> None:
    folder, (_, _, cause) = folder_of(tmp_path / "tiny", source(name)), MIXINGS[name]
    with refused("Member member-0 says a logit", "at row", "of test", "no function of its row", cause):
        cache_logits(settings(folder))
    assert not any((folder / "cache").rglob("*.npy"))
    assert cache_logits(settings(folder, now(folder, good()))).added == 2 * 4


LATE = {
    "a state that turns after many rows": ("self.asked = 0", "x * (1 if self.count(x) < 60 else -1)"),
    "the size of the batch": ("pass", "x * (-1 if len(x) == 4 else 1)"),
}


@pytest.mark.parametrize("transform", ["crop-flip", "ods"])
@pytest.mark.parametrize("name", LATE)
def test_a_member_that_changes_during_the_pass_is_refused(tmp_path: Path, name: str, transform: str) -> None:
    """What it said of that split goes: once it is fixed, a pass ends with what one over the fixed one alone makes."""
    init, forward = LATE[name]
    counting = "\n    def count(self, x):\n        self.asked += len(x)\n        return self.asked\n"
    text = good(init, forward).replace("\n\ndef make_teacher", f"{counting}\n\ndef make_teacher")
    folder, view = folder_of(tmp_path / "tiny", text), {"views.transform": transform}
    with refused(
        "says a logit", "asked about the row later", "about 4 rows at once, and then about 8", "no function of its row"
    ):
        cache_logits(settings(folder, view))
    assert not any((folder / "cache" / "records" / "train").rglob("*.npy"))
    mended = view | now(folder, good())
    cache_logits(settings(folder, mended))
    if transform != "ods":  # where the inputs that the other moved are stored
        cache_logits(settings(folder, mended | {"output.cache": str(folder / "anew")}))
        assert contents(folder / "cache" / "records") == contents(folder / "anew" / "records")


def test_both_values_are_told() -> None:
    member = Member("m", "s", class_order=(1, 0))

    class Counting(nn.Module):
        asked = 0

        def forward(self, x: Tensor) -> Tensor:
            self.asked += 1
            return torch.tensor([[2.0, 0.0]]).repeat(len(x), 1) * (1 + (self.asked > 1))

    with refused("Member m says a logit of class 0", "of -1 at row 10 of test and, asked again, -2"):
        tried(Counting(), torch.zeros(3, 2), member, "test", [10, 20, 30], 2)


@pytest.mark.parametrize("name", ["dropout", "batch statistics"])
def test_a_cache_is_kept_when_its_members_become_such(tmp_path: Path, name: str) -> None:
    """And it is not the code that is said to have changed."""
    folder = folder_of(tmp_path / "tiny", good())
    cache_logits(settings(folder))
    with refused_and_kept(folder / "cache", "Member member-0", MIXINGS[name][2]):
        cache_logits(settings(folder, now(folder, source(name))))


def test_a_regressor_is_told_in_its_own_numbers() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 1000 + x[:, :1] + torch.rand(len(x), 1), torch.zeros(len(x), 1)

    member = Member("m", "s", output="mean-logvar")
    with refused("Member m says a mean of 100", "and, asked again, 100", RANDOM):
        tried(Noisy(), torch.randn(8, 2), member, "train", range(8), None)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_small_splits_are_enough(tmp_path: Path, rows: int) -> None:
    folder = folder_of(tmp_path / "tiny", good())
    shutil.rmtree(folder / "data")
    tiny = make_folder(tmp_path / "few", 1, {"train": rows})
    shutil.copytree(tiny / "data", folder / "data")
    (folder / "edistill.toml").write_text((tiny / "edistill.toml").read_text())
    assert cache_logits(settings(folder)).added == 4
    with refused("Member member-0", RANDOM):
        cache_logits(settings(folder, now(folder, source("dropout"))), overwrite=True)
    if rows > 1:
        with refused("Member member-0", BATCH):
            cache_logits(settings(folder, now(folder, source("batch statistics"))), overwrite=True)


def test_few_rows_are_asked_about() -> None:
    assert some_rows(1) == [0]
    assert some_rows(5) == [0, 1, 2, 3, 4]
    assert some_rows(50_000)[:: ROWS - 1] == [0, 49_999]
    assert len(some_rows(50_000)) == ROWS
    asked = 0

    def ask(x: Tensor) -> Any:
        nonlocal asked
        asked += len(x)
        return x.double().numpy()

    assert find_change(ask, torch.randn(ROWS, 3), lambda first: Scale(1.0, 0.0)) is None
    assert asked == 3 * ROWS + 1


def test_random_numbers_of_the_caller_stay_untouched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    dropping = nn.Dropout().train()
    assert find_change(lambda x: dropping(x).double().numpy(), torch.ones(8, 9), lambda _: Scale(1.0, 0.0)) is not None
    assert torch.equal(torch.get_rng_state(), before)


class InBfloat16(nn.Module):
    """Layers that round to less than three digits, more or less by the batch's shape, which a GPU's kernels do too."""

    def __init__(self, own: nn.Module, by_shape: float) -> None:
        super().__init__()
        self.own, self.by_shape = own, by_shape

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            z: Tensor = self.own(x * (1 + self.by_shape * len(x)))
        return z


@pytest.mark.parametrize("by_shape", [0.0, 1e-4])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rounding_is_no_reason_to_refuse(by_shape: float, offset: float) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5))]
    deep = nn.Sequential(*layers, nn.Linear(64, 10)).eval()
    with torch.no_grad():
        deep[-1].bias += offset
    for scale in (1e-4, 1.0, 100.0):
        x = scale * torch.randn(8, 64)
        for network in (deep, InBfloat16(deep, by_shape).eval()):
            assert tried(network, x, Member("m", "s"), "train", range(8), 10) == (network, None)
            refuse_dependent_body(network, x, "model.py:make_body")


def test_a_member_that_hardly_says_anything_is_none_either() -> None:
    for module in (nn.Linear(4, 3), nn.Linear(4, 3)):
        with torch.no_grad():
            module.weight.mul_(1e-6)
            module.bias.fill_(-5.0)
        assert tried(module, torch.randn(8, 4), Member("m", "s"), "train", range(8), 3)[1] is None


# --- what the messages say to do --------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_monte_carlo_member_is_given_as_the_message_says(tmp_path: Path) -> None:
    """The lines of the message, put where it says, make three members of one network and three masks."""
    folder = folder_of(tmp_path / "tiny", source("dropout"), members=1)
    with refused("Member member-0", MASK, MASKED, DRAWN):
        cache_logits(settings(folder))
    state = load_file(folder / "teachers/member-0.safetensors")
    (folder / "teachers/member-0.safetensors").unlink()
    masks = []
    for index in range(3):
        torch.manual_seed(index)
        masks.append(eval(DRAWN, {"torch": torch, "width": 16, "p": 0.5}))
        save_file({**state, "3.mask": masks[-1]}, folder / "teachers" / f"mask-{index}.safetensors")
    masked = settings(folder, now(folder, good(MASK, MASKED)))
    assert cache_logits(masked).members == ("mask-0", "mask-1", "mask-2")
    assert cache_logits(masked).added == 0
    x = (np.load(folder / "data/test.npz")["x"] / np.float32(255) - 0.5) / np.float32(0.5)
    hidden = functional.relu(torch.tensor(x).flatten(1) @ state["1.weight"].T + state["1.bias"])
    wanted = torch.stack([(hidden * mask) @ state["4.weight"].T + state["4.bias"] for mask in masks], dim=1)
    read = Cache(folder / "cache").open("test").read(range(30))
    np.testing.assert_allclose(read, wanted, atol=2e-2)
    train(masked)
    evaluate(masked, shifts=True)


def test_batch_statistics_are_kept_as_the_message_says(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tiny", source("batch statistics"), members=1)
    with refused("track_running_stats=True, momentum=None", "show it training rows once in training mode"):
        cache_logits(settings(folder))
    made: dict[str, Any] = {}
    text = good(NORM.format("momentum=None, ", True), "self.norm(x)")
    exec(text, made)
    member = made["make_teacher"]()
    file = folder / "teachers/member-0.safetensors"
    member.load_state_dict(load_file(file), strict=False)
    x = np.load(folder / "data/train.npz")["x"]
    member.train()(torch.tensor((x / np.float32(255) - 0.5) / np.float32(0.5)))
    save_file(member.state_dict(), file)
    assert cache_logits(settings(folder, now(folder, text))).added == 4


# --- members that are asked live --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_of(tmp_path_factory.mktemp("rows") / "tiny", good())
    cache_logits(settings(folder, RUN))
    train(settings(folder, RUN))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.mark.parametrize("name", ["dropout", "batch statistics"])
@pytest.mark.parametrize(
    "command",
    [
        lambda these: evaluate(these, shifts=True),
        lambda these: evaluate(these.model_copy(update={"output": no_cache(these)})),
        lambda these: calibrate(these.model_copy(update={"output": no_cache(these)})),
    ],
    ids=["shifts", "evaluate", "calibrate"],
)
def test_members_that_are_asked_live(folder: Path, name: str, command: Callable[[Any], Any]) -> None:
    these = now(folder, source(name))
    del these["student.model"]
    with refused_and_kept(folder / "runs", "Member member-0", "no function of its row", MIXINGS[name][2]):
        command(settings(folder, {**RUN, **these}))
    command(settings(folder, RUN))


def no_cache(these: Any) -> Any:
    return these.output.model_copy(update={"cache": Path(these.output.cache).with_name("nowhere")})


# --- students ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["[]", "last stage"])
@pytest.mark.parametrize("name", ["dropout", "batch statistics", "the row before"])
def test_such_a_body_is_not_trained(folder: Path, name: str, heads: str) -> None:
    body = now(folder, source(name))["student.model"]
    more = {"student.heads": {"last-stage": "1"}} if heads != "[]" else {}
    these = {**RUN, "student.model": body, "output.name": "other", **more}
    with refused_and_kept(folder, f"The body {body} gives", "in eval mode", MIXINGS[name][2]):
        train(settings(folder, these))
    told = "training=self.training" if name == "dropout" else "track_running_stats=False. Leave that at True"
    mended = good("pass", f"F.dropout(x, {told})") if name == "dropout" else good(NORM.format("", True), "self.norm(x)")
    train(settings(folder, {**these, "student.model": now(folder, mended)["student.model"]}))


COMMANDS: dict[str, Callable[[Any], Any]] = {
    "evaluate": evaluate,
    "calibrate": calibrate,
    "export": lambda these: export(these, onnx=True),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["dropout", "the batch's mean"])
@pytest.mark.parametrize("command", COMMANDS)
def test_such_a_run_is_not_relied_on(folder: Path, name: str, command: str) -> None:
    """It was trained by another version of the body, or before bodies were tried."""
    of = becomes(folder, source(name))
    with refused("The student of", str(folder / "runs/hydra-s0"), "in eval mode", MIXINGS[name][2]):
        COMMANDS[command](of)
    COMMANDS[command](becomes(folder, good()))


def becomes(folder: Path, text: str) -> Any:
    """Settings beside which the run's body is made by another text, in a process that has imported none of it."""
    (folder / "model.py").write_text(text)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    for name in [name for name in sys.modules if name.startswith("_edistill_model_")]:
        del sys.modules[name]
    return settings(folder, RUN)


def test_such_a_run_teaches_nobody(folder: Path) -> None:
    becomes(folder, source("dropout"))
    teaching = {**RUN, "teachers.path": "runs", "output.cache": "second", "output.runs": "later"}
    with refused("Member hydra-s0", "no function of its row", RANDOM):
        cache_logits(settings(folder, teaching))
    becomes(folder, good())
    assert cache_logits(settings(folder, teaching)).added == 4


def test_a_body_that_fails_alone_is_told_so() -> None:
    class Centered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise ValueError("Expected more than 1 value per channel when training")
            return x

    with refused("asked about the row alone, it fails (ValueError: Expected more than 1 value", BATCH):
        refuse_dependent_body(Centered(), torch.randn(4, 3), "model.py:make_body")
    with refused("Member m", "asked about the row alone, it fails (Member m fails on train", BATCH):
        tried(Centered(), torch.randn(4, 3), Member("m", "s"), "train", range(4), 3)


def test_what_is_not_finite_is_for_others_to_tell() -> None:
    nowhere = find_change(lambda x: np.full((len(x), 2), np.nan), torch.zeros(3, 1), lambda _: Scale(1.0, 0.0))
    assert nowhere is None


def test_modes_are_put_back() -> None:
    body = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    refuse_dependent_body(body.train(), torch.randn(8, 3), "model.py:make_body")
    assert body.training
    assert body[1].training
    x = torch.randn(4, 3)
    kept = x.clone()
    refuse_dependent_body(nn.ReLU(inplace=True), x, "model.py:make_body")
    assert_array_equal(x, kept)


def test_helpers_agree(tmp_path: Path) -> None:
    """The good module is what NumPy's is: else every refusal here could be about something else."""
    folder = folder_of(tmp_path / "tiny", good())
    cache_logits(settings(folder))
    assert contents(folder / "cache")
    with pytest.raises(EdistillError):
        cache_logits(settings(folder, now(folder, source("dropout"))))


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_members_of_any_scale_answer_as_they_did_in_the_pass(tmp_path: Path, scale: float) -> None:
    """float16 ends at 65,504 below a row's greatest logit."""
    folder = make_folder(tmp_path / "tiny")
    code = (folder / "model.py").read_text().replace("nn.Linear(36, classes))", "nn.Linear(36, classes), Scale())")
    scaled = f"class Scale(nn.Module):\n    def forward(self, x):\n        return {scale} * x\n"
    (folder / "model.py").write_text(f"{code}\n\n{scaled}")
    assert cache_logits(settings(folder)).added == 15
