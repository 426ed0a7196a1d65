"""Digests: changed by anything that is data, unchanged by where and when the data lies."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ensemble_distill.data import digests, open_source
from ensemble_distill.errors import EdistillError

NAMES = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/3.png", "emu/1.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (index, 0, 0)).save(path)
    return tmp_path / "images"


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: shutil.copy(root / "cat/1.png", root / "cat/3.png"),
        lambda root: (root / "cat/2.png").unlink(),
        lambda root: (root / "cat/2.png").rename(root / "cat/4.png"),
        lambda root: (root / "cat/2.png").rename(root / "dog/2.png"),
        lambda root: (root / "emu").rename(root / "gnu"),
        lambda root: (root / "emu").rename(root / "ant"),
        lambda root: flip_last_bit(root / "dog/3.png"),
    ],
    ids=["added", "removed", "renamed", "relabeled", "class renamed", "class moved", "byte"],
)
def test_a_folders_digest_changes(folder: Path, change: Callable[[Path], object]) -> None:
    before = open_source(folder).digest
    change(folder)
    assert open_source(folder).digest != before


def test_a_folders_digest_is_the_same_elsewhere_and_later(folder: Path, tmp_path: Path) -> None:
    before = open_source(folder)
    moved = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(folder, moved)
    os.utime(moved / NAMES[0], (1, 1))
    after = open_source(moved)
    assert after.digest == before.digest
    assert before.digest_scope == "name, size and label of every row, contents of all rows"
    assert len(before.digest) == 64


def test_labels_count_even_where_the_files_are_equal(folder: Path) -> None:
    flat, _ = digests.folder_digest(folder, NAMES, None, None)
    labeled, _ = digests.folder_digest(folder, NAMES, np.array([0, 0, 1, 1, 2]), ("cat", "dog", "emu"))
    other, _ = digests.folder_digest(folder, NAMES, np.array([0, 0, 1, 1, 1]), ("cat", "dog", "emu"))
    assert len({flat, labeled, other}) == 3


def test_a_large_folder_is_sampled_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "WHOLE", sum((folder / name).stat().st_size for name in NAMES[:2]))
    monkeypatch.setattr(digests, "SAMPLE", 2)
    source = open_source(folder)
    assert source.digest_scope == (
        "name, size and label of every row, contents of the first 2 rows and of 2 sampled ones"
    )
    for name, seen in zip(NAMES, [True, True, True, False, True], strict=True):
        original = (folder / name).read_bytes()
        flip_last_bit(folder / name)
        assert (open_source(folder).digest != source.digest) == seen, name
        (folder / name).write_bytes(original)


def test_a_file_that_has_gone_is_named(folder: Path) -> None:
    source = open_source(folder)
    (folder / NAMES[3]).unlink()
    with pytest.raises(EdistillError, match=r"dog/3\.png cannot be read: No such file"):
        _ = source.digest


def test_arrays_are_hashed_whole(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    y = np.array([0, 1, 1, 0])
    variants = {
        "plain": {"x": x, "y": y},
        "value": {"x": x + (np.arange(24).reshape(4, 6) == 23), "y": y},
        "shape": {"x": x.reshape(4, 1, 2, 3), "y": y},
        "label": {"x": x, "y": np.array([0, 1, 1, 1])},
        "unlabeled": {"x": x},
        "named": {"x": x, "y": y, "classes": ["a", "b"]},
        "named otherwise": {"x": x, "y": y, "classes": ["a", "c"]},
    }
    seen = {}
    for name, arrays in variants.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        seen[name] = open_source(tmp_path / f"{name}.npz").digest
    assert len(set(seen.values())) == len(variants)
    # the same numbers under other names, in other storage, and in compressed form
    np.savez_compressed(tmp_path / "again.npz", a=x.astype(">f8"), b=y.astype(np.uint8))
    again = open_source(SimpleNamespace(source=str(tmp_path / "again.npz"), rows=None, x="a", y="b"))
    assert again.digest == seen["plain"]
    assert again.digest_scope == "all arrays whole"


def test_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    y = np.arange(10)

    def digest(x: np.ndarray, y: np.ndarray | None = y, length: int = 10) -> tuple[str, str]:
        return digests.examples_digest(length, y, None, lambda row: x[row])

    def changed(row: int) -> np.ndarray:
        other = x.copy()
        other[row, 1] += 1
        return other

    whole, scope = digest(x)
    assert scope == "label of every row, contents of all rows"
    assert all(digest(changed(row))[0] != whole for row in range(10))
    assert len({whole, digest(x, y + 1)[0], digest(x, None)[0], digest(x, y, 9)[0]}) == 4
    monkeypatch.setattr(digests, "WHOLE", 79)
    monkeypatch.setattr(digests, "SAMPLE", 4)
    sampled, scope = digest(x)
    assert scope == "label of every row, contents of 4 sampled rows"
    assert [row for row in range(10) if digest(changed(row))[0] != sampled] == [0, 3, 6, 9]


def test_parts_do_not_run_together() -> None:
    x = np.zeros((2, 3), np.float32)
    assert digests.arrays_digest(x, None, ("ab", "c")) != digests.arrays_digest(x, None, ("a", "bc"))
