"""What the caching pass refuses: other data, views, members or storage than the cache's, and outputs of no use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
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
    save_data,
    save_member,
    settings,
)
from torch import Tensor, nn

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching import SplitPlan, cache_outputs
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

SIZE = Preprocessing((6, 6), (0.5,), (0.5,))
OVERWRITE = "un edistill cache-logits --overwrite"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("refusals") / "tiny")
    cache_logits(settings(folder))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to break, with its cache."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


# --- the data has changed ---------------------------------------------------------------------------------------

Change = Callable[[Path], None]


def a_pixel(folder: Path) -> None:
    data = dict(np.load(folder / "data/train.npz"))
    data["x"][39, 5, 5] ^= 1
    np.savez(folder / "data/train.npz", **data)


def a_label(folder: Path) -> None:
    data = dict(np.load(folder / "data/train.npz"))
    data["y"][39] ^= 1
    np.savez(folder / "data/train.npz", **data)


def a_row_more(folder: Path) -> None:
    save_data(folder, "train", 41)


def the_order_of_rows(folder: Path) -> None:
    data = dict(np.load(folder / "data/train.npz"))
    np.savez(folder / "data/train.npz", **{name: array[::-1] for name, array in data.items()})


def class_names(folder: Path) -> None:
    data = dict(np.load(folder / "data/train.npz"))
    np.savez(folder / "data/train.npz", **data, classes=np.array(["a", "b", "c"]))


def refuses_to_use(folder: Path, settings_now: Any, *said: str) -> None:
    """Both commands refuse, and the cache is as it was."""
    before = contents(folder / "cache")
    with refused(str(folder / "cache"), *said, OVERWRITE):
        cache_logits(settings_now)
    with refused(str(folder / "cache"), *said, OVERWRITE):
        train(settings_now)
    assert contents(folder / "cache") == before
    assert not (folder / "runs/hydra-s0/student.safetensors").exists()


@pytest.mark.parametrize("change", [a_pixel, a_label, a_row_more, the_order_of_rows, class_names])
def test_arrays_that_changed_since_are_refused(folder: Path, change: Change) -> None:
    cached = Manifest.load(folder / "cache").splits["train"].digest
    change(folder)
    rows = 41 if change is a_row_more else 40
    refuses_to_use(folder, settings(folder), f"train data {cached[:12]}… (40 rows)", f"({rows} rows)", "data.train is")
    assert cache_logits(settings(folder), overwrite=True).added == 3 * 2 + 3 * 3
    train(settings(folder))


@pytest.fixture(scope="module")
def made_of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("images") / "tiny", rows={"validation": 6})
    x, y = examples(12, 0)
    for row, (pixels, label) in enumerate(zip(x, y, strict=True)):
        file = folder / "data" / "train" / "abc"[label] / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    with (folder / "edistill.toml").open("a") as file:
        file.write('train = "data/train"\n')
    cache_logits(settings(folder))
    return folder


@pytest.fixture
def images(made_of_images: Path, tmp_path: Path) -> Path:
    """A folder whose training data is an image folder of three classes, with its cache."""
    return Path(shutil.copytree(made_of_images, tmp_path / "tiny"))


def a_file_added(folder: Path) -> None:
    (folder / "a/99.png").write_bytes((folder / "a/00.png").read_bytes())


def a_file_removed(folder: Path) -> None:
    (folder / "a/00.png").unlink()


def a_file_renamed(folder: Path) -> None:
    (folder / "a/00.png").rename(folder / "a/01.png")


def a_file_in_another_class(folder: Path) -> None:
    (folder / "a/00.png").rename(folder / "b/00.png")


def a_file_edited(folder: Path) -> None:
    pixels = np.asarray(Image.open(folder / "a/00.png")).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "a/00.png")


def a_class_renamed(folder: Path) -> None:
    (folder / "c").rename(folder / "d")


@pytest.mark.parametrize(
    "change",
    [a_file_added, a_file_removed, a_file_renamed, a_file_in_another_class, a_file_edited, a_class_renamed],
)
def test_an_image_folder_that_changed_since_is_refused(images: Path, change: Change) -> None:
    cached = Manifest.load(images / "cache").splits["train"].digest
    change(images / "data/train")
    refuses_to_use(images, settings(images), f"train data {cached[:12]}… (12 rows)", "data.train is")


def test_data_that_only_moved_or_was_touched_is_welcome(images: Path) -> None:
    (images / "data/train").rename(images / "elsewhere")
    for file in (images / "elsewhere").rglob("*.png"):
        file.touch()
    moved = settings(images, {"data.train": "elsewhere"})
    assert cache_logits(moved).added == 0
    train(moved)


def test_another_split_that_changed_is_named(folder: Path) -> None:
    save_data(folder, "ood/noise", 8)
    before = contents(folder / "cache")
    with refused("ood/noise data", "(7 rows)", "(8 rows)", OVERWRITE):
        cache_logits(settings(folder))
    assert contents(folder / "cache") == before


# --- other settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "then", "now"),
    [
        ("views.seed", 0, 1),
        ("views.transform", "crop-flip+mixup", "noise"),
        ("views.transform", "crop-flip+mixup", "none"),
    ],
)
def test_other_views_are_refused(folder: Path, key: str, then: object, now: object) -> None:
    refuses_to_use(folder, settings(folder, {key: now}), f"{key} = {then!r}", f"say {now!r}", f"Set {key} to {then!r}")


@pytest.mark.parametrize(("key", "then", "now"), [("cache.dtype", "float16", "float32"), ("cache.batch-size", 4, 8)])
def test_other_storage_is_refused(folder: Path, key: str, then: object, now: object) -> None:
    before = contents(folder / "cache")
    with refused(f"made with {key} = {then!r}", f"say {now!r}", f"Set {key} to {then!r}", "--overwrite"):
        cache_logits(settings(folder, {key: now}))
    assert contents(folder / "cache") == before


def test_a_changed_member_is_refused(folder: Path) -> None:
    then = Manifest.load(folder / "cache").members[1].sha256
    save_member(folder, 1, seed=9)
    refuses_to_use(
        folder, settings(folder), f"member-1 with sha256 {then[:12]}…", "but now it is", "Put the old one back"
    )


def test_a_member_with_another_preprocessing_is_refused(folder: Path) -> None:
    now = settings(folder, {"teachers.preprocessing": {"size": [6, 6], "mean": [0.5], "std": [0.25]}})
    refuses_to_use(folder, now, "member-0 with preprocessing", "std=(0.5,)", "std=(0.25,)")


def test_a_member_said_to_return_something_else_is_refused(folder: Path) -> None:
    now = settings(folder, {"teachers.output": "probabilities"})
    refuses_to_use(folder, now, "member-0 with output logits", "now it is probabilities")


def test_a_member_that_is_gone_is_refused(folder: Path) -> None:
    (folder / "teachers/member-1.safetensors").unlink()
    refuses_to_use(
        folder, settings(folder), "member-1, which is not among the teachers (member-0, member-2)", "Put it back"
    )


def test_a_copy_of_a_member_is_refused(folder: Path) -> None:
    save_member(folder, 5, seed=1)
    before = contents(folder / "cache")
    with refused("member-1 and member-5 hold the same weights", "Remove one"):
        cache_logits(settings(folder))
    assert contents(folder / "cache") == before


def test_a_cache_of_a_later_version_or_a_damaged_one_is_refused(folder: Path) -> None:
    manifest = folder / "cache/manifest.json"
    whole = manifest.read_text()
    for text, said in (
        (whole.replace('"format": 1', '"format": 2'), "has cache format 2, and this edistill reads format 1"),
        (whole[: len(whole) // 2], "is damaged"),
    ):
        manifest.write_text(text)
        refuses_to_use(folder, settings(folder), said)
    manifest.write_text(whole)
    assert cache_logits(settings(folder)).added == 0


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    (folder / "cache").mkdir()
    (folder / "cache/thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with refused("is not a cache (it holds thesis.tex)", "Name another folder in output.cache"):
            cache_logits(settings(folder), overwrite=overwrite)
    assert contents(folder / "cache") == {"thesis.tex": b"years of work"}
    with refused("edistill.toml is a file, and output.cache needs a folder"):
        cache_logits(settings(folder, {"output.cache": "edistill.toml"}))


def test_no_data_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={})
    with refused("There is no data: set data.train"):
        cache_logits(settings(folder))
    save_data(folder, "train", 0)
    with refused("data.train: ", "no rows"):
        cache_logits(settings(folder, {"data.train": "data/train.npz"}))


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
        "classification",
        splits or {"train": plan()},
        teachers,
        dtype="float16",
        batch_size=8,
        device=torch.device("cpu"),
        workers=0,
        progress=Silent(),
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
        (nn.Identity(), "returns (1, 1, 6, 6) for 1 rows"),
        (nn.Sequential(nn.Flatten(), nn.Linear(35, 3)), "fails on train on an input of shape (1, 1, 6, 6)"),
    ],
    ids=["shape", "error"],
)
def test_a_member_that_is_no_classifier_of_these_inputs_is_refused(
    tmp_path: Path, module: nn.Module, said: str
) -> None:
    with refused(f"Member m7 {said}", "teachers.model"):
        run(tmp_path / "cache", [good(0), teacher("m7", module)])
    assert not (tmp_path / "cache").exists(), "what cannot work fails before the pass"


def test_a_member_that_returns_a_tuple_is_refused(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with refused("Member m7 returns tuple for 1 rows", "a classifier returns (rows, classes)"):
        run(tmp_path, [teacher("m7", Pair())])


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
        f"they sum to {total}",
        'Set teachers.output = "logits"',
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
    with refused("The members have 3 classes, but data.train has 4 (a, b, c, d, …)"):
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
    with refused("Member member-0 does not say how pixels become its input", "Set teachers.preprocessing"):
        cache_logits(settings(folder))
    assert not (folder / "cache/manifest.json").exists()


# --- class order ------------------------------------------------------------------------------------------------


def permuted(seed: int) -> dict[str, Tensor]:
    state = member_state(seed)
    return {name: tensor[[1, 2, 0]].contiguous() for name, tensor in state.items()}


def test_a_member_whose_classes_are_permuted_is_refused_and_can_be_taken_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all the members only it is computed, and once it is gone nothing is."""
    plain = {"views.transform": "none", "output.cache": "plain"}
    cache_logits(settings(folder, plain))
    before = contents(folder / "plain")
    save_file(permuted(7), folder / "teachers/member-7.safetensors")
    with refused("member-7: its outputs look to be in another class order than the data", "rows are right"):
        cache_logits(settings(folder, plain))
    with refused("is unfinished: train has no view of every member yet", "Run edistill cache-logits"):
        train(settings(folder, plain))
    (folder / "teachers/member-7.safetensors").unlink()
    asked = rows_asked(monkeypatch)
    assert cache_logits(settings(folder, plain)).added == 0
    assert not asked
    assert contents(folder / "plain") == before


def test_a_member_that_failed_can_be_replaced_under_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts go with it, or the new weights would answer with the old ones' logits."""
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)
    plain = {"views.transform": "none", "output.cache": "plain"}
    cache_logits(settings(folder, plain))
    save_file(permuted(7), folder / "teachers/member-7.safetensors")
    with refused("another class order"):
        cache_logits(settings(folder, plain))
    assert list((folder / "plain/parts").rglob("*.safetensors")), "blocks of the refused member"
    save_member(folder, 7)
    asked = rows_asked(monkeypatch)
    cache_logits(settings(folder, plain))
    assert asked == {"member-7": 40 + 12 + 10 + 7}
    cache_logits(settings(folder, {**plain, "output.cache": "whole"}))
    assert contents(folder / "plain", ["args.toml"]) == contents(folder / "whole", ["args.toml"])


def test_a_member_that_failed_late_takes_its_records_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passed the first split and not the second, which the others have: it may go, and they stay."""
    splits = {"train": plan(12), "test": plan(20)}
    run(tmp_path / "cache", [good(0), good(1)], splits)
    before = contents(tmp_path / "cache")
    with refused("Member m7 returns", "at row 13 of test"):
        run(tmp_path / "cache", [good(0), good(1), teacher("m7", AtRow(13, lambda raw: raw * float("nan")))], splits)
    assert "train/m7/0" in Manifest.load(tmp_path / "cache").records
    asked = rows_asked(monkeypatch)
    assert run(tmp_path / "cache", [good(0), good(1)], splits) == 0
    assert not asked
    assert contents(tmp_path / "cache") == before


def test_a_member_is_finished_although_a_new_split_is_not(tmp_path: Path) -> None:
    """What nobody has yet is no reason to let anybody go."""
    run(tmp_path, [good(0), good(1)], {"train": plan(12)})
    bad = teacher("m1", AtRow(13, lambda raw: raw * float("nan")))
    with refused("at row 13 of test"):
        run(tmp_path, [good(0), bad], {"train": plan(12), "test": plan(20)})
    before = contents(tmp_path)
    with refused("holds member m1, which is not among the teachers (m0)", OVERWRITE):
        run(tmp_path, [good(0)], {"train": plan(12), "test": plan(20)})
    assert contents(tmp_path) == before
    assert len(Manifest.load(tmp_path).classes) == CLASSES


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_file_that_does_not_decode_can_be_replaced(
    images: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The message asks for that; the splits before it stay cached, and of its own nothing old is used."""
    monkeypatch.setattr(writer, "BLOCK_ROWS", 4)
    shutil.copytree(images / "data/train", images / "data/test")
    broken = images / "data/test/b/07.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    mine = settings(images, {"data.test": "data/test", "train.workers": workers})
    with refused(f"{broken} (row 6) does not decode", "Replace the file"):
        cache_logits(mine)
    assert list((images / "cache/parts/test").iterdir()), "the first block was done"
    with Image.open(images / "data/train/b/10.png") as image:
        image.save(broken)
    asked = rows_asked(monkeypatch)
    assert cache_logits(mine).added == 3
    assert set(asked.values()) == {12}
    cache_logits(settings(images, {"data.test": "data/test", "output.cache": "whole"}))
    assert contents(images / "cache", ["args.toml"]) == contents(images / "whole", ["args.toml"])
