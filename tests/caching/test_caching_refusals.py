"""What the caching pass refuses: other data, views, members or storage than the cache's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import (
    contents,
    examples,
    make_folder,
    refused,
    rows_asked,
    save_data,
    save_member,
    settings,
)

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import Manifest, as_recorded
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.caching.probe import refuse_changed
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

SIZE = Preprocessing((6, 6), (0.5,), (0.5,))
OVERWRITE = "un edistill cache-logits --overwrite"


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
def test_arrays_that_changed_since_are_refused(cached: Path, change: Change) -> None:
    held = Manifest.load(cached / "cache").splits["train"].digest
    change(cached)
    rows = 41 if change is a_row_more else 40
    refuses_to_use(cached, settings(cached), f"train data {held[:12]}… (40 rows)", f"({rows} rows)", "data.train is")
    assert cache_logits(settings(cached), overwrite=True).added == 3 * 2 + 3 * 3
    train(settings(cached))


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
    held = Manifest.load(images / "cache").splits["train"].digest
    change(images / "data/train")
    refuses_to_use(images, settings(images), f"train data {held[:12]}… (12 rows)", "data.train is")


def test_data_that_only_moved_or_was_touched_is_welcome(images: Path) -> None:
    (images / "data/train").rename(images / "elsewhere")
    for file in (images / "elsewhere").rglob("*.png"):
        file.touch()
    moved = settings(images, {"data.train": "elsewhere"})
    assert cache_logits(moved).added == 0
    train(moved)


def test_another_split_that_changed_is_named(cached: Path) -> None:
    save_data(cached, "ood/noise", 8)
    before = contents(cached / "cache")
    with refused("ood/noise data", "(7 rows)", "(8 rows)", OVERWRITE):
        cache_logits(settings(cached))
    assert contents(cached / "cache") == before


# --- other settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "then", "now"),
    [
        ("views.seed", 0, 1),
        ("views.transform", "crop-flip+mixup", "noise"),
        ("views.transform", "crop-flip+mixup", "none"),
    ],
)
def test_other_views_are_refused(cached: Path, key: str, then: object, now: object) -> None:
    refuses_to_use(cached, settings(cached, {key: now}), f"{key} = {then!r}", f"say {now!r}", f"Set {key} to {then!r}")


@pytest.mark.parametrize(("key", "then", "now"), [("cache.dtype", "float16", "float32"), ("cache.batch-size", 4, 8)])
def test_other_storage_is_refused(cached: Path, key: str, then: object, now: object) -> None:
    before = contents(cached / "cache")
    with refused(f"made with {key} = {then!r}", f"say {now!r}", f"Set {key} to {then!r}", "--overwrite"):
        cache_logits(settings(cached, {key: now}))
    assert contents(cached / "cache") == before


def test_a_changed_member_is_refused(cached: Path) -> None:
    then = Manifest.load(cached / "cache").members[1].sha256
    save_member(cached, 1, seed=9)
    refuses_to_use(
        cached, settings(cached), f"member-1 with sha256 {then[:12]}…", "but now it is", "Put the old one back"
    )


def test_a_member_that_no_longer_answers_is_refused(cached: Path) -> None:
    manifest, key = Manifest.load(cached / "cache"), RecordKey("train", "member-0", 0)
    said = Cache(cached / "cache").open("train").read([0])[:, 0]
    refuse_changed(cached / "cache", manifest, key, said)
    with refused("member-0 answers row 0 of train otherwise", "it gives no answer now", "--overwrite"):
        refuse_changed(cached / "cache", manifest, key, np.full_like(said, np.nan))


def test_a_member_with_another_preprocessing_is_refused(cached: Path) -> None:
    now = settings(cached, {"teachers.preprocessing": {"size": [6, 6], "mean": [0.5], "std": [0.25]}})
    refuses_to_use(cached, now, "member-0 with preprocessing", "std=(0.5,)", "std=(0.25,)")


@pytest.mark.parametrize("kind", ["pixels", "text", "several", "tokens", "tensor", "features"])
def test_another_preprocessing_is_another_member_wherever_it_acts(kind: str) -> None:
    was, now = (Member("a", "0" * 64, preprocessing=Preprocessing((6, 6), (mean,), (0.5,))) for mean in (0.5, 0.4))
    found = as_recorded([was], now, ["features", kind])
    assert found == (now if kind in ("pixels", "text", "several") else was)


def test_a_member_said_to_return_something_else_is_refused(cached: Path) -> None:
    now = settings(cached, {"teachers.output": "probabilities"})
    refuses_to_use(cached, now, "member-0 with output logits", "now it is probabilities")


def test_a_member_that_is_gone_is_refused(cached: Path) -> None:
    (cached / "teachers/member-1.safetensors").unlink()
    refuses_to_use(
        cached, settings(cached), "member-1, which is not among the teachers (member-0, member-2)", "Put it back"
    )


def test_a_copy_of_a_member_is_refused(cached: Path) -> None:
    save_member(cached, 5, seed=1)
    before = contents(cached / "cache")
    with refused("member-1 and member-5 hold the same weights", "Remove one"):
        cache_logits(settings(cached))
    assert contents(cached / "cache") == before


def test_a_cache_of_a_later_version_or_a_damaged_one_is_refused(cached: Path) -> None:
    manifest = cached / "cache/manifest.json"
    whole = manifest.read_text()
    for text, said in (
        (whole.replace('"format": 1', '"format": 4'), "has cache format 4, and this edistill reads formats 1 to 3"),
        (whole[: len(whole) // 2], "is damaged"),
    ):
        manifest.write_text(text)
        refuses_to_use(cached, settings(cached), said)
    manifest.write_text(whole)
    assert cache_logits(settings(cached)).added == 0


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
    with refused("edistill.toml is a file, and output.cache needs a folder"):
        cache_logits(settings(folder, {"output.cache": "edistill.toml/cache"}))
    (folder / "disk").symlink_to(tmp_path / "unmounted")
    for place in ("disk", "disk/cache"):
        with refused(f"disk is a link to {tmp_path / 'unmounted'}, where nothing is", "output.cache needs a folder"):
            cache_logits(settings(folder, {"output.cache": place}))


def test_no_data_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={})
    with refused("There is no data: set data.train"):
        cache_logits(settings(folder))
    save_data(folder, "train", 0)
    with refused("data.train: ", "no rows"):
        cache_logits(settings(folder, {"data.train": "data/train.npz"}))


# --- a broken file ----------------------------------------------------------------------------------------------


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
