"""Members of one architecture are asked in one batch: what they say is their own, and its bytes are always the same."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from tiny import CLASSES, SIDE, contents, killed_at, linear, make_folder, member_state, refused, save_member, settings
from torch import Tensor, nn

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import NAME, Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.facts import Member
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.teachers.answering import Answering, Inputs
from ensemble_distill.teachers.network import Network
from ensemble_distill.teachers.together import APART, FEWEST, MOST, Together, together
from ensemble_distill.workflows.cache_logits import cache_logits

NAMES = [f"member-{index}" for index in range(FEWEST)]


def networks(make: Callable[[int], nn.Module], count: int = FEWEST, **facts: Any) -> list[Answering]:
    task = Regression if facts.get("output") == "mean-variance" else Classification
    return [Network(task, Member(f"member-{index}", "0" * 64, **facts), seeded(index, make)) for index in range(count)]


def seeded(index: int, make: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(index)
    return make(index).eval()


def shown(*shape: int) -> Callable[[Inputs], Tensor]:
    return lambda _: torch.randn(20, *shape, generator=torch.Generator().manual_seed(5))


def found(asked: list[Answering], *shape: int) -> list[tuple[str, ...]]:
    return [batch.names for batch in together(asked, shown(*shape))]


def assert_own_answers(asked: list[Answering], *shape: int) -> None:
    """One batch of all, which says of other rows what each says alone."""
    (batch,) = together(asked, shown(*shape))
    x = torch.randn(7, *shape)
    said = batch.answers("train", range(7), x)
    assert said is not None
    for one, answers in zip(asked, said, strict=True):
        alone = one.answers("train", range(7), x)
        assert_allclose(answers, alone, atol=APART * np.abs(alone).max())
    assert len({answers.tobytes() for answers in said}) == len(asked)


# --- who is asked together --------------------------------------------------------------------------------------


def test_a_batch_says_what_its_members_say() -> None:
    assert_own_answers(networks(lambda _: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))), 5)


def test_statistics_are_each_members_own_and_nothing_is_dropped() -> None:
    def make(index: int) -> nn.Module:
        module = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.LayerNorm(9), nn.Dropout(0.5), nn.Linear(9, 3))
        module(torch.randn(30, 5) * (1 + index))
        return module

    assert_own_answers(networks(make), 5)


def test_code_of_ones_own_with_weights_of_its_own_and_a_pair_of_outputs() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.randn(5, 2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean, other = (x.flatten(1) @ self.by).unbind(-1)
            return mean, other.exp()

    assert_own_answers(networks(lambda _: Pair(), output="mean-variance"), 5)


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y if bool(y.sum() > 1e9) else 2 * y


class Counting(nn.Sequential):
    """Writes into a tensor that no batch has a dimension in."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), 3)
        total += super().forward(x)
        return total


class Scaled(nn.Sequential):
    def __init__(self, by: float) -> None:
        super().__init__(nn.Linear(5, 3))
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y.clamp_max(self.by)


class Held(nn.Sequential):
    """Keeps a weight that is not a parameter, and differs only where few rows show it."""

    def __init__(self, at: float) -> None:
        super().__init__(nn.Linear(5, 3))
        self.at = torch.tensor(1e6 + at)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return torch.minimum(y, self.at)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda _: Branching(nn.Linear(5, 3)), (5,)),
        (lambda _: Counting(nn.Linear(5, 3)), (5,)),
        (lambda index: Scaled(1e6 + index), (5,)),
        (lambda index: Held(index), (5,)),
        (lambda _: nn.Sequential(nn.Conv2d(1, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 4, 4)),
        (lambda _: nn.Sequential(nn.Linear(5, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), (5,)),
        (lambda _: nn.Sequential(nn.Flatten(), nn.Linear(600, 600), nn.Linear(600, 3)), (600,)),
    ],
    ids=["branching", "in place", "a number of its own", "a tensor of its own", "convolution", "parametrized", "large"],
)
def test_others_are_asked_one_by_one_or_say_the_same(make: Callable[[int], nn.Module], shape: tuple[int, ...]) -> None:
    """Whether a batch of them can be made is torch's affair; that it says what they do is ours."""
    asked = networks(make)
    if found(asked, *shape):
        assert_own_answers(asked, *shape)


@pytest.mark.parametrize("make", [lambda index: Scaled(1e6 + index), lambda index: Held(index)])
def test_what_few_rows_do_not_show_keeps_members_apart(make: Callable[[int], nn.Module]) -> None:
    assert found(networks(make), 5) == []


def test_a_batch_that_says_something_else_is_none() -> None:
    """Code that tells members apart by what nobody can compare: here, by how it is called."""

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return -y if torch._C._functorch.is_batchedtensor(self.inner.weight) else y

    assert found(networks(lambda _: Turning()), 5) == []


def test_those_of_another_architecture_or_meaning_are_apart() -> None:
    small = networks(lambda _: nn.Linear(5, 3))
    wide = networks(lambda _: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), FEWEST - 1)
    turned = networks(lambda _: nn.Linear(5, 3), FEWEST - 1, class_order=(2, 0, 1))
    for index, one in enumerate([*small, *wide, *turned]):
        one.member = replace(one.member, name=f"m{index}")
    assert found([*turned, *small, *wide], 5) == [tuple(f"m{index}" for index in range(FEWEST))]


def test_many_are_several_batches_and_a_few_are_none() -> None:
    def make(_: int) -> nn.Module:
        return nn.Linear(5, 3)

    assert found(networks(make, FEWEST - 1), 5) == []
    assert [len(names) for names in found(networks(make, 2 * MOST + FEWEST), 5)] == [MOST, MOST, FEWEST]
    assert [len(names) for names in found(networks(make, MOST + 1), 5)] == [MOST]


def test_a_pass_goes_on_as_it_was_begun() -> None:
    asked = networks(lambda _: nn.Linear(5, 3), MOST)
    noted = [["member-0", "gone", "member-3"], ["gone"], ["member-4"]]
    names = {one.member.name for one in asked}
    assert [batch.names for batch in together(asked, shown(5), noted, names)] == [("member-0", "member-3")]
    assert [len(batch.names) for batch in together(asked, shown(5), [], NAMES[:2])] == [MOST - 2]


def test_what_is_no_answer_is_told_by_the_member_itself() -> None:
    asked = networks(lambda _: nn.Linear(5, 3))
    (batch,) = together(asked, shown(5))
    assert isinstance(batch, Together)
    assert batch.answers("train", [0], torch.full((1, 5), torch.nan)) is None
    assert batch.answers("train", [0], torch.zeros(1, 6)) is None


# --- in the pass ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)  # of the 40 training rows: 16, 16 and 8
    return make_folder(tmp_path / "tiny", FEWEST, {"train": 40, "validation": 6})


def kept(cache: Path) -> dict[str, bytes]:
    return contents(cache, ["args.toml", ".part"])


def test_records_are_those_of_each_member_and_the_manifest_names_the_batch(folder: Path) -> None:
    cache_logits(settings(folder))
    cache = Cache(folder / "cache")
    assert cache.manifest.caching["together"] == [NAMES]
    x = torch.from_numpy(np.load(folder / "data/validation.npz")["x"]) / 255
    with torch.no_grad():
        wanted = torch.stack([linear(seed)((x - 0.5) / 0.5) for seed in range(FEWEST)], 1).numpy()
    assert wanted.shape == (6, FEWEST, CLASSES)
    assert_allclose(cache.open("validation").read(range(6)), wanted, atol=1e-2)


@pytest.mark.usefixtures("no_waiting_for_disks")
@pytest.mark.thorough
def test_a_pass_killed_anywhere_goes_on_to_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_logits(settings(folder))
    again, ended = folder / "again", 0
    for point in itertools.count(0, 5):
        shutil.rmtree(again, ignore_errors=True)
        with killed_at(point, monkeypatch, folder) as happened:
            cache_logits(settings(folder, {"output.cache": "again"}))
        cache_logits(settings(folder, {"output.cache": "again"}))
        assert kept(again) == kept(folder / "cache"), point
        ended += bool(happened)
        if not happened:
            break
    assert ended > 3


def test_a_record_that_was_lost_comes_back_with_its_bytes(folder: Path) -> None:
    cache_logits(settings(folder))
    before = kept(folder / "cache")
    RecordKey("train", "member-3", 1).path(folder / "cache").unlink()
    assert cache_logits(settings(folder)).added == 1
    assert kept(folder / "cache") == before


def test_members_that_come_later_leave_the_others_as_they_are(folder: Path) -> None:
    cache_logits(settings(folder))
    before = {name: content for name, content in kept(folder / "cache").items() if name.endswith(".npy")}
    for index in range(FEWEST, 2 * FEWEST + 1):
        save_member(folder, index)
    cache_logits(settings(folder))
    after = kept(folder / "cache")
    assert {name: after[name] for name in before} == before
    noted = Manifest.load(folder / "cache").caching["together"]
    assert [len(names) for names in noted] == [FEWEST, FEWEST + 1]
    assert noted[0] == NAMES


def test_a_cache_that_was_begun_one_by_one_goes_on_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of an earlier version does, whose manifest names no batch."""
    with monkeypatch.context() as patch:
        patch.setattr("ensemble_distill.teachers.together.FEWEST", 100)
        cache_logits(settings(folder))
    assert "together" not in Manifest.load(folder / "cache").caching
    before = kept(folder / "cache")
    RecordKey("train", "member-3", 1).path(folder / "cache").unlink()
    cache_logits(settings(folder))
    assert kept(folder / "cache") == before


def test_a_member_that_fails_is_named(folder: Path) -> None:
    state = member_state(5)
    state["2.weight"][1, 4] = torch.inf
    save_file(state, folder / "teachers/member-5.safetensors")
    with refused("member-5"):
        cache_logits(settings(folder))


def test_a_member_that_fails_on_one_row_alone_is_named(folder: Path) -> None:
    """No batch was tried on that row."""
    code = (
        (folder / "model.py")
        .read_text()
        .replace(
            "return x.mean(1)",
            "x = x.mean(1)\n        return x + (0 / (x.sum((1, 2)) - BAD).abs().gt(1e-4))[:, None, None]",
        )
    )
    data = dict(np.load(folder / "data/train.npz"))
    data["x"][37] = 255
    np.savez(folder / "data/train.npz", **data)
    (folder / "model.py").write_text(f"BAD = {SIDE * SIDE}.0\n{code}")
    with refused("member-0", "row 37"):
        cache_logits(settings(folder, {"views.transform": "none", "views.count": 1}))


@pytest.mark.parametrize("noted", [3, "member-0", [["member-0", 4]], [["member-0", "member-0"]], ["member-0"], None])
def test_a_manifest_that_names_no_batches_is_damaged(folder: Path, noted: Any) -> None:
    cache_logits(settings(folder))
    manifest = Manifest.load(folder / "cache")
    replace(manifest, caching={**manifest.caching, "together": noted}).save(folder / "cache")
    assert json.loads((folder / "cache" / NAME).read_text())["caching"]["together"] == noted
    with refused("together", NAME):
        cache_logits(settings(folder))
