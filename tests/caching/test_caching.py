"""The caching pass: what it writes, and that adding members, views and splits computes nothing again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from tiny import (
    CLASSES,
    ROWS,
    SIDE,
    contents,
    examples,
    linear,
    make_folder,
    rows_asked,
    save_data,
    save_member,
    settings,
)
from torch import Tensor, nn

from ensemble_distill.cache import writer
from ensemble_distill.cache.parts import Block
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.caching import filling
from ensemble_distill.caching.filling import held
from ensemble_distill.caching.idle import warn_of_little_diversity
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.source import Item
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers.ready_made import MODEL as READY_MADE
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workspace import Workspace

SIZE = Preprocessing((6, 6), (0.5,), (0.5,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return rows_asked(monkeypatch)


def records(cache: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(cache).items() if name.endswith(".npy")}


def times(cache: Path) -> dict[str, int]:
    return {path.relative_to(cache).as_posix(): path.stat().st_mtime_ns for path in cache.rglob("*.npy")}


def run(folder: Path, splits: Mapping[str, SplitPlan], teachers: list[Teacher]) -> int:
    return cache_outputs(
        folder, Classification, splits, teachers, Asking("float16", 4, torch.device("cpu"), 0, Silent())
    )


# --- what is written --------------------------------------------------------------------------------------------


def test_records_are_the_members_own_outputs_on_each_view(folder: Path) -> None:
    """Against modules, views and pixels taken in hand."""
    report = cache_logits(settings(folder))
    assert report.added == 3 * 2 + 3 * 3
    assert report.members == ("member-0", "member-1", "member-2")
    assert report.splits == {"train": (40, 2), "validation": (12, 1), "test": (10, 1), "ood/noise": (7, 1)}
    cache = Cache(folder / "cache")
    for split, rows in ROWS.items():
        views = 2 if split == "train" else 1
        data = np.load(folder / "data" / f"{split}.npz")
        source = Arrays(data["x"][..., None], data["y"], "pixels")
        view = open_view("crop-flip+mixup" if split == "train" else "none")
        read = cache.open(split, views)
        for index in range(views):
            plans = [view.plan(0, index, row, rows) for row in range(rows)]
            x = torch.from_numpy(np.stack([plan.x([source.item(row) for row in plan.rows], SIZE) for plan in plans]))
            with torch.no_grad():
                wanted = np.stack([linear(seed)(x).numpy() for seed in range(3)], axis=1)
            assert_allclose(read.read(range(rows), index), wanted, atol=1e-2)


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_bytes_do_not_depend_on_workers_or_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    cache_logits(settings(folder))
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)
    cache_logits(settings(folder, {"output.cache": "other", "train.workers": workers, "data.ood": {}}))
    theirs = records(folder / "cache")
    assert records(folder / "other") == {name: theirs[name] for name in theirs if "ood" not in name}


@pytest.mark.thorough
def test_bytes_do_not_depend_on_how_much_is_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of too many views or classes for the memory is made in pieces, and put in parts."""
    for name, limit in (("whole", None), ("pieces", 1)):
        if limit is not None:
            for at, of in ((filling, "HELD_BYTES"), (writer, "PART_BYTES"), (writer, "BLOCK_BYTES")):
                monkeypatch.setattr(at, of, limit)
        for kind in ("dense", "sampled"):
            drawn = {"cache.records": kind, "cache.samples": 2}
            cache_logits(settings(folder, {"output.cache": f"{name}-{kind}", "views.count": 3, **drawn}))
    for kind in ("dense", "sampled"):
        assert records(folder / f"pieces-{kind}") == records(folder / f"whole-{kind}")


def test_as_many_views_are_made_together_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [RecordKey("train", member, view) for view in range(5) for member in ("a", "b")]
    work = [(Block(at, at + 8), tuple(keys)) for at in (0, 8, 16)]
    assert held(work, lambda _: 10) == work
    monkeypatch.setattr(filling, "HELD_BYTES", 2 * (2 * 10 * 8) + 1)  # two views of a block
    pieces = held(work, lambda _: 10)
    assert [(block.start, sorted({key.view for key in some})) for block, some in pieces] == [
        *((start, [0, 1]) for start in (0, 8, 16)),
        *((start, [2, 3]) for start in (0, 8, 16)),
        *((start, [4]) for start in (0, 8, 16)),
    ]
    assert sorted(str((block, key)) for block, some in pieces for key in some) == sorted(
        str((block, key)) for block, some in work for key in some
    )


def test_members_of_several_input_sizes_see_the_same_views(tmp_path: Path) -> None:
    """A view is drawn without a size: a member that sees twice the size sees each pixel of the view four times."""
    seen: dict[str, list[Tensor]] = {"small": [], "large": []}

    class Seeing(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            seen[self.name].append(x.clone())
            return x.flatten(1)[:, :CLASSES] - 1  # else they would look like sigmoids

    x, y = examples(10, 0)
    plan = SplitPlan(Arrays(x[..., None], y, "pixels"), open_view("crop-flip+mixup"), "crop-flip+mixup", 0, 2)
    sizes = {
        "small": Preprocessing((6, 6), (0.0,), (1.0,)),
        "large": Preprocessing((12, 12), (0.0,), (1.0,), "nearest"),
    }
    members = [Member(name, name, preprocessing=to) for name, to in sizes.items()]
    run(tmp_path, {"ood/x": plan}, [Teacher(member, lambda m=member: Seeing(m.name)) for member in members])
    small, large = (torch.cat(seen[name]) for name in seen)
    assert len(small) == len(large) > 2 * 10, "the probe, and two views of each row"
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert_array_equal(large[:, :, row::2, column::2], small)


def test_a_row_is_decoded_once_for_all_members_and_views(tmp_path: Path) -> None:
    reads: Counter[int] = Counter()

    class Counting(Arrays):
        def item(self, row: int) -> Item:
            reads[row] += 1
            return super().item(row)

    x, y = examples(12, 0)
    plan = SplitPlan(Counting(x[..., None], y, "pixels"), open_view("crop-flip"), "crop-flip", 0, 3)
    teachers = [Teacher(Member(f"m{i}", str(i), preprocessing=SIZE), lambda i=i: linear(i)) for i in range(3)]
    run(tmp_path, {"train": plan}, teachers)
    beside = Counter({0: 1 + 3, 3: 3, 7: 3, 11: 3})  # the first row is compared, and inputs kept as proof of replay
    beside.update(2 * some_rows(12))  # of the probe before the pass, and of that after it
    assert reads == {row: 1 + beside[row] for row in range(12)}


def test_probabilities_are_kept_as_floored_logarithms_in_the_datas_class_order(tmp_path: Path) -> None:
    class Certain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            certain = x.flatten(1).sum(1, keepdim=True) == first
            return torch.where(certain, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.25, 0.25]))

    x, y = examples(4, 0)
    x[0], first = 0, -SIDE * SIDE
    plan = SplitPlan(Arrays(x[..., None], y, "pixels"), open_view("none"), "none", 0, 1)
    member = Member("m", "s", output="probabilities", class_order=(2, 0, 1), preprocessing=SIZE)
    run(tmp_path, {"ood/x": plan}, [Teacher(member, Certain)])
    cache = Cache(tmp_path)
    read = cache.open("ood/x").read([0, 1])[:, 0]
    # output 0 is class 2, output 1 is class 0, output 2 is class 1
    assert_allclose(read, np.log([[1e-7, 1e-7, 1], [0.25, 0.25, 0.5]]), atol=1e-2)
    assert cache.manifest.caching["floor"] == 1e-7


def test_splits_smaller_than_a_batch_are_cached(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "few", rows={"train": 3, "validation": 1})
    assert cache_logits(settings(folder)).splits == {"train": (3, 2), "validation": (1, 1)}


def test_a_single_member_brings_a_warning(tmp_path: Path) -> None:
    progress = Silent()
    cache_logits(settings(make_folder(tmp_path / "one", members=1)), progress=progress)
    assert progress.warnings == ["member-0 is the only member: there is no diversity to keep."]


def test_the_settings_beside_a_cache_make_it_again(folder: Path) -> None:
    from ensemble_distill.settings import load_settings

    cache_logits(settings(folder))
    before = contents(folder / "cache")
    cache_logits(load_settings(folder / "cache" / "args.toml"), overwrite=True)
    assert contents(folder / "cache") == before


# --- adding -----------------------------------------------------------------------------------------------------

Change = Callable[[Path], dict[str, Any]]


def a_member(folder: Path) -> dict[str, Any]:
    save_member(folder, 7)
    return {}


def a_first_member(folder: Path) -> dict[str, Any]:
    save_member(folder, 7).rename(folder / "teachers" / "a.safetensors")
    return {}


def a_view(folder: Path) -> dict[str, Any]:
    return {"views.count": 3}


def a_split(folder: Path) -> dict[str, Any]:
    save_data(folder, "new", 9)
    return {"data.transfer": "data/new.npz"}


OTHERS = 12 + 10 + 7
ADDITIONS: dict[Change, dict[str, int]] = {
    a_member: {"member-7": 2 * 40 + OTHERS},
    a_first_member: {"a": 2 * 40 + OTHERS},
    a_view: {f"member-{i}": 40 for i in range(3)},
    a_split: {f"member-{i}": 2 * 9 for i in range(3)},
}


@pytest.mark.parametrize("change", ADDITIONS, ids=lambda change: change.__name__)
def test_adding_computes_nothing_again_and_equals_a_cache_made_at_once(
    folder: Path, change: Change, asked: Counter[str]
) -> None:
    cache_logits(settings(folder))
    old, then = records(folder / "cache"), times(folder / "cache")
    more = change(folder)
    asked.clear()
    report = cache_logits(settings(folder, more))
    assert asked == ADDITIONS[change]
    assert report.added == len(records(folder / "cache")) - len(old) > 0
    assert records(folder / "cache").items() >= old.items()
    assert times(folder / "cache").items() >= then.items()

    cache_logits(settings(folder, {**more, "output.cache": "scratch"}))
    assert contents(folder / "cache", ["args.toml"]) == contents(folder / "scratch", ["args.toml"])


def test_a_pass_with_nothing_to_do_only_probes(folder: Path, asked: Counter[str]) -> None:
    cache_logits(settings(folder))
    before, then = contents(folder / "cache"), times(folder / "cache")
    asked.clear()
    assert cache_logits(settings(folder)).added == 0
    assert cache_logits(settings(folder, {"views.count": 1})).added == 0, "fewer views than there are"
    assert not asked
    assert (contents(folder / "cache"), times(folder / "cache")) == (before, then)


def test_views_that_change_nothing_are_cached_once(folder: Path) -> None:
    report = cache_logits(settings(folder, {"views.transform": "none", "views.count": 9, "views.seed": 5}))
    assert report.splits["train"] == (40, 1)
    assert cache_logits(settings(folder, {"views.transform": "none", "views.count": 2})).added == 0


def test_a_deleted_record_alone_is_made_again(folder: Path, asked: Counter[str]) -> None:
    cache_logits(settings(folder))
    before = contents(folder / "cache")
    (folder / "cache/records/train/member-1.v1.npy").unlink()
    asked.clear()
    assert cache_logits(settings(folder)).added == 1
    assert asked == {"member-1": 40}
    assert contents(folder / "cache") == before


def test_members_of_outputs_alone_are_not_told_to_answer_views(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    plans = Workspace(settings(folder)).splits()
    for model, wanted, other in ((None, "Set views.transform", "(V, N"), (READY_MADE, "(V, N, ·)", "Set views.")):
        members = [SimpleNamespace(member=SimpleNamespace(name=name, model=model)) for name in "ab"]
        progress = Silent()
        warn_of_little_diversity("none", plans, members, progress)  # type: ignore[arg-type]
        (told,) = progress.warnings
        assert wanted in told
        assert other not in told


def test_doctor_says_which_command_is_next(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    given = settings(folder)
    assert doctor(lambda: given).next == "cache-logits"
    cache_logits(given, progress=Silent())
    assert doctor(lambda: given).next == "train"
    save_data(folder, "ood/noise", 9)
    assert doctor(lambda: given).next == "cache-logits", "something is wrong"
