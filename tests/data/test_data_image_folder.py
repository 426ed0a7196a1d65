"""Image folders: torchvision's order and pixels, and no row that is quietly skipped."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from ensemble_distill.data import open_source
from ensemble_distill.errors import EdistillError


def write_images(root: Path, names: Iterable[str], mode: str = "RGB") -> None:
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)


AWKWARD = [
    "class10/b.png", "class10/a.jpg", "class2/a-b/1.png", "class2/a/2.png", "class2/a/b/0.png",
    "class2/z.PNG", "class2/a.png", "Zebra/10.bmp",
    "Zebra/9.webp", "Zebra/é.tif", "ant/1.ppm", "ant/2.JPEG", "ant/3.pgm",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_rows_are_torchvisions(tmp_path: Path, mode: str) -> None:
    from torchvision.datasets import ImageFolder

    write_images(tmp_path, AWKWARD, mode)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    theirs, ours = ImageFolder(str(tmp_path)), open_source(tmp_path)
    assert ours.classes == tuple(theirs.classes) == ("Zebra", "ant", "class10", "class2")
    assert [str(tmp_path / ours.name(row)) for row in range(len(ours))] == [path for path, _ in theirs.samples]
    assert ours.labels is not None
    assert ours.labels.dtype == np.int64
    assert_array_equal(ours.labels, theirs.targets)
    for row in range(len(ours)):
        item = ours.item(row)
        assert (item.kind, item.x.dtype, item.x.shape) == ("pixels", np.uint8, (6, 5, 3))
        assert_array_equal(item.x, np.asarray(theirs[row][0]))
        assert item.y == theirs[row][1]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, ["b.png", "a.png", "c10.png", "c2.png"])
    source = open_source(tmp_path)
    assert (source.classes, source.labels, source.item(0).y) == (None, None, None)
    assert [source.name(row) for row in range(len(source))] == ["a.png", "b.png", "c10.png", "c2.png"]
    assert source.item(1).x.shape == (6, 5, 3)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_a_broken_image_is_named_and_moves_no_row(tmp_path: Path, content: bytes | None) -> None:
    write_images(tmp_path, ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"])
    broken = tmp_path / "cat" / "2.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2] if content is None else content)
    source = open_source(tmp_path)
    with pytest.raises(EdistillError, match=r"2\.jpg \(row 1\) does not decode: .*Replace the file"):
        source.item(1)
    assert (len(source), source.name(2), source.item(2).y) == (3, "dog/1.jpg", 1)


def test_decoded_images_are_kept_read_only_and_left_out_of_copies(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png"])
    source = open_source(tmp_path)
    first = source.item(0)
    copy = pickle.loads(pickle.dumps(source))
    (tmp_path / "1.png").unlink()
    again = source.item(0)
    assert_array_equal(again.x, first.x)
    for item in (first, again):
        with pytest.raises(ValueError, match="read-only"):
            item.x[0] = 0
    with pytest.raises(EdistillError, match="does not decode"):
        copy.item(0)


def test_refusals(tmp_path: Path) -> None:
    empty, lone, mixed = tmp_path / "empty", tmp_path / "lone", tmp_path / "mixed"
    empty.mkdir()
    with pytest.raises(EdistillError, match=r"empty holds no images\. .+ \.jpg"):
        open_source(empty)
    write_images(lone, ["cat/1.png"])
    (lone / "dog").mkdir()
    with pytest.raises(EdistillError, match="dog holds no images, so class 'dog' has no rows"):
        open_source(lone)
    write_images(mixed, ["cat/1.png", "stray.png"])
    with pytest.raises(EdistillError, match=r"class folders \(cat, …\) and beside them stray\.png"):
        open_source(mixed)
    (mixed / "stray.png").unlink()
    with pytest.raises(EdistillError, match="class folders, but the task is regression"):
        open_source(mixed, "regression")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write_images(tmp_path, ["cat/1.png", "cat/hidden/2.png"])
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("hidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(EdistillError, match="hidden cannot be listed: Permission denied"):
        open_source(tmp_path)
