"""What a member or a student says of a row follows from that row alone, or it is refused before it is relied on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import tried
from own_row_helpers import BATCH, MIXINGS, NORM, RANDOM, folder_of, good, now, source
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
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

# --- members ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXINGS)
def test_such_a_member_is_refused_before_the_pass(tmp_path: Path, name: str) -> None:
    folder, (_, _, cause) = folder_of(tmp_path / "tiny", source(name)), MIXINGS[name]
    with refused("Member member-0 says a logit", "at row", "of test", "not a function of its row", cause):
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
        "says a logit",
        "asked about the row later",
        "about 4 rows at once, and then about 8",
        "not a function of its row",
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
