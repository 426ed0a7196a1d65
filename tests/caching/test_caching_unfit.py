"""What the caching pass refuses of members and data: outputs of no use, classes that do not fit, broken files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import (
    CLASSES,
    contents,
    examples,
    linear,
    make_folder,
    member_state,
    refused,
    rows_asked,
    save_member,
    settings,
)
from torch import Tensor, nn

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.tasks.checks import class_order
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

SIZE = Preprocessing((6, 6), (0.5,), (0.5,))
OVERWRITE = "un edistill cache-logits --overwrite"


# --- members and data that do not fit ---------------------------------------------------------------------------


def teacher(name: str, module: nn.Module, output: str = "logits") -> Teacher:
    return Teacher(Member(name, f"sha of {name}", output=output, preprocessing=SIZE), lambda: module)


def good(seed: int) -> Teacher:
    return teacher(f"m{seed}", linear(seed))


def plan(rows: int = 20, **more: Any) -> SplitPlan:
    x, y = examples(rows, 0)
    return SplitPlan(Arrays(x[..., None], more.pop("y", y), "pixels", **more), open_view("none"), "none", 0, 1)


def run(folder: Path, teachers: Sequence[Teacher], splits: Mapping[str, SplitPlan] | None = None) -> int:
    return cache_outputs(
        folder,
        Classification,
        splits or {"train": plan()},
        teachers,
        Asking("float16", 8, torch.device("cpu"), 0, Silent()),
    )


class AtRow(nn.Module):
    """A member that returns something of its own at one row of the 20."""

    def __init__(self, row: int, returned: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.returned = linear(0), returned
        x, _ = examples(20, 0)
        self.marked = torch.from_numpy((x[row] / np.float32(255) - 0.5) / 0.5)

    def forward(self, x: Tensor) -> Tensor:
        raw: Tensor = self.module(x)
        here = (x[:, 0] - self.marked).abs().amax((1, 2)) < 1e-6
        return torch.where(here[:, None], self.returned(raw), raw)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_refused_by_member_and_row(tmp_path: Path, value: float) -> None:
    bad = teacher("m7", AtRow(13, lambda raw: raw + torch.tensor([0, value, 0])))
    with refused("Member m7 returns", "at row 13 of train: not finite", "Remove the member", "or the row"):
        run(tmp_path, [good(0), bad])
    assert run(tmp_path, [good(0), good(1)]) == 2, "the member is taken away, as the message says"
    assert Manifest.load(tmp_path).names == ("m0", "m1")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Identity(), "returns (8, 1, 6, 6) for 8 rows"),
        (nn.Sequential(nn.Flatten(), nn.Linear(35, 3)), "fails on train on an input of shape (8, 1, 6, 6)"),
    ],
    ids=["shape", "error"],
)
def test_a_member_that_is_no_classifier_of_these_inputs_is_refused(
    tmp_path: Path, module: nn.Module, said: str
) -> None:
    with refused(f"Member m7 {said}", "teachers.model"):
        run(tmp_path / "cache", [good(0), teacher("m7", module)])
    assert not (tmp_path / "cache").exists(), "what cannot work fails before the pass"


@pytest.mark.parametrize(
    ("returned", "least", "total"),
    [
        (lambda p: p * 1.01, "0.", "1.0100"),
        (lambda p: p * 0, "0.0000", "0.0000"),
        (lambda p: torch.tensor([[1.5, -0.5, 0.0]]).expand_as(p), "-0.5000", "1.0000"),
    ],
    ids=["sum", "zero", "negative"],
)
def test_what_are_no_probabilities_are_refused(
    tmp_path: Path, returned: Callable[[Tensor], Tensor], least: str, total: str
) -> None:
    """The whole row's figures are told, since a negative one may stand in a row that sums to 1."""
    inner = AtRow(13, lambda raw: raw)

    class Probabilities(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            p = inner.module(x).softmax(1)
            here = (x[:, 0] - inner.marked).abs().amax((1, 2)) < 1e-6
            return torch.where(here[:, None], returned(p), p)

    with refused(
        "Member m7 is said to return probabilities, but at row 13 of train the least is " + least,
        f"they sum to {total}. Fix what it says of that row",
    ):
        run(tmp_path, [teacher("m7", Probabilities(), "probabilities")])


def test_members_of_other_class_counts_are_refused(tmp_path: Path) -> None:
    four = teacher("m7", nn.Sequential(nn.Flatten(), nn.Linear(36, 4)))
    with refused("disagree in their number of classes: m0 3, m7 4", "remove the members of another task"):
        run(tmp_path, [good(0), four])
    run(tmp_path, [good(0)])
    before = contents(tmp_path)
    with refused("disagree in their number of classes: m0 3, m7 4"):
        run(tmp_path, [good(0), four])
    assert contents(tmp_path) == before


def test_data_of_another_class_count_is_refused(tmp_path: Path) -> None:
    with refused("The members have 3 classes, but data.train has 4 (a, b, c, d)"):
        run(tmp_path, [good(0)], {"train": plan(classes=("a", "b", "c", "d"))})


def test_splits_of_other_classes_or_another_order_are_refused(tmp_path: Path) -> None:
    first = plan(classes=("a", "b", "c"))
    with refused(
        "data.train has 3 classes and data.test has 3, or in another order (b / c, c / b)", "same class folders"
    ):
        run(tmp_path, [good(0)], {"train": first, "test": plan(classes=("a", "c", "b"))})
    with refused("data.train has 3 classes and data.test has 2", "(c / None)"):
        run(tmp_path, [good(0)], {"train": first, "test": plan(classes=("a", "b"), y=np.zeros(20, np.int64))})
    run(tmp_path, [good(0)], {"train": first, "ood/x": plan(classes=("x", "y"), y=None)})  # those are elsewhere


@pytest.mark.parametrize("label", [3, 255])
def test_a_label_the_members_do_not_know_is_refused(tmp_path: Path, label: int) -> None:
    y = np.arange(20) % 3
    y[11] = label
    with refused(f"data.train has label {label}, but the members have classes 0 to 2"):
        run(tmp_path, [good(0)], {"train": plan(y=y)})
    run(tmp_path, [good(0)], {"ood/x": plan(y=y)})  # whose labels mean something else


def test_labels_that_are_no_integers_are_refused(tmp_path: Path) -> None:
    with refused("data.train has labels of float32; classes are integers from 0"):
        run(tmp_path, [good(0)], {"train": plan(y=np.zeros(20, np.float32))})


def test_pixels_without_preprocessing_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    text = (folder / "edistill.toml").read_text()
    (folder / "edistill.toml").write_text("\n".join(line for line in text.splitlines() if "preprocessing" not in line))
    _, height, width, *_ = np.load(folder / "data/train.npz")["x"].shape
    told = "Member member-0 does not say how pixels become its input"
    with refused(told, "Set teachers.preprocessing", f"size = [{height}, {width}]"):
        cache_logits(settings(folder))
    assert not (folder / "cache/manifest.json").exists()


# --- class order ------------------------------------------------------------------------------------------------


def permuted(seed: int) -> dict[str, Tensor]:
    state = member_state(seed)
    return {name: tensor[[1, 2, 0]].contiguous() for name, tensor in state.items()}


def test_a_member_whose_classes_are_permuted_is_refused_and_can_be_taken_away(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all the members only it is computed, and once it is gone nothing is."""
    plain = {"views.transform": "none", "output.cache": "plain"}
    cache_logits(settings(cached, plain))
    before = contents(cached / "plain")
    save_file(permuted(7), cached / "teachers/member-7.safetensors")
    with refused("train: member-7: its outputs look to be in another class order", "rows are right", "check-labels"):
        cache_logits(settings(cached, plain))
    with refused("is unfinished: train has no view of every member yet", "Run edistill cache-logits"):
        train(settings(cached, plain))
    (cached / "teachers/member-7.safetensors").unlink()
    asked = rows_asked(monkeypatch)
    assert cache_logits(settings(cached, plain)).added == 0
    assert not asked
    assert contents(cached / "plain") == before


def test_a_member_that_knows_little_is_told_and_cached(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_order, "KNOWN", 1.0)  # nobody knows that much
    save_file(permuted(7), cached / "teachers/member-7.safetensors")
    heard = Silent()
    assert cache_logits(settings(cached, {"views.transform": "none", "output.cache": "plain"}), progress=heard).added
    told = [text for text in heard.warnings if "member-7 knows little, or its outputs are in another class" in text]
    assert [text.split(":")[0] for text in told] == ["train"]  # of twelve rows nothing can be told


def test_a_member_that_contradicts_the_labels_is_told_and_cached_where_the_user_knows_better(cached: Path) -> None:
    save_file(permuted(7), cached / "teachers/member-7.safetensors")
    heard, plain = Silent(), {"views.transform": "none", "output.cache": "plain", "cache.check-labels": False}
    assert cache_logits(settings(cached, plain), progress=heard).added
    (told,) = [text for text in heard.warnings if "another class order" in text]
    assert told.startswith("train: member-7: its outputs look to be")
    assert told.endswith("1 is called 0).")


def test_a_member_that_failed_can_be_replaced_under_its_name(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts go with it, or the new weights would answer with the old ones' logits."""
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)
    plain = {"views.transform": "none", "output.cache": "plain"}
    cache_logits(settings(cached, plain))
    save_file(permuted(7), cached / "teachers/member-7.safetensors")
    with refused("another class order"):
        cache_logits(settings(cached, plain))
    assert list((cached / "plain/parts").rglob("*.safetensors")), "blocks of the refused member"
    save_member(cached, 7)
    asked = rows_asked(monkeypatch)
    cache_logits(settings(cached, plain))
    assert asked == {"member-7": 40 + 12 + 10 + 7}
    cache_logits(settings(cached, {**plain, "output.cache": "whole"}))
    assert contents(cached / "plain", ["args.toml"]) == contents(cached / "whole", ["args.toml"])


def test_a_member_that_failed_late_takes_its_records_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passed the first split and not the second, which the others have: it may go, and they stay."""
    splits = {"train": plan(12), "test": plan(20)}
    run(tmp_path / "cache", [good(0), good(1)], splits)
    before = contents(tmp_path / "cache")
    with refused("Member m7 returns", "at row 14 of test"):
        run(tmp_path / "cache", [good(0), good(1), teacher("m7", AtRow(14, lambda raw: raw * float("nan")))], splits)
    assert RecordKey("train", "m7", 0) in Manifest.load(tmp_path / "cache").records
    asked = rows_asked(monkeypatch)
    assert run(tmp_path / "cache", [good(0), good(1)], splits) == 0
    assert not asked
    assert contents(tmp_path / "cache") == before


def test_a_member_is_finished_although_a_new_split_is_not(tmp_path: Path) -> None:
    """What nobody has yet is not a reason to let anybody go."""
    run(tmp_path, [good(0), good(1)], {"train": plan(12)})
    bad = teacher("m1", AtRow(13, lambda raw: raw * float("nan")))
    with refused("at row 13 of test"):
        run(tmp_path, [good(0), bad], {"train": plan(12), "test": plan(20)})
    before = contents(tmp_path)
    with refused("holds member m1, which is not among the teachers (m0)", OVERWRITE):
        run(tmp_path, [good(0)], {"train": plan(12), "test": plan(20)})
    assert contents(tmp_path) == before
    assert len(Manifest.load(tmp_path).classes) == CLASSES
