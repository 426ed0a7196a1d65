"""`open_source`: which kind of source an entry is, subsets of one, and starting without torch."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from ensemble_distill.data import open_inputs, open_source, source_kinds
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError

X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
Y = np.arange(10) % 4


@pytest.fixture
def file(tmp_path: Path) -> str:
    np.savez(tmp_path / "a.npz", x=X, y=Y, classes=["a", "b", "c", "d"])
    return str(tmp_path / "a.npz")


@pytest.fixture
def subset(file: str, tmp_path: Path) -> Any:
    def open_rows(rows: Any) -> Source:
        np.save(tmp_path / "rows.npy", rows)
        return open_source(SimpleNamespace(source=file, rows=str(tmp_path / "rows.npy"), x="x", y="y"))

    return open_rows


def test_one_kind_claims_a_source(file: str, tmp_path: Path) -> None:
    for source in (file, str(tmp_path), "mine.py:make", "package.module:make"):
        assert sum(kind.claims(source) for kind in source_kinds()) == 1
    (tmp_path / "folder.npz").mkdir()
    assert sum(kind.claims(str(tmp_path / "folder.npz")) for kind in source_kinds()) == 1


def test_no_source(file: str, tmp_path: Path) -> None:
    for name in ("gone", "C:/gone", "gone.zip"):
        with pytest.raises(EdistillError, match=f"source .*{name} does not exist. Give a folder of images"):
            open_source(str(tmp_path / name))
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(EdistillError, match=r"data\.zip is neither a folder nor an \.npz"):
        open_source(tmp_path / "data.zip")
    with pytest.raises(EdistillError, match=r"gone\.npz cannot be read"):
        open_source(tmp_path / "gone.npz")


def test_names_of_arrays_are_refused_elsewhere(tmp_path: Path) -> None:
    for source in (str(tmp_path), f"{tmp_path}/mine.py:make"):
        with pytest.raises(EdistillError, match=r"is not an \.npz, but x is 'train_x'"):
            open_source(SimpleNamespace(source=source, rows=None, x="train_x", y="y"))


def test_a_subset_is_those_rows_in_that_order(file: str, subset: Any) -> None:
    rows = np.array([7, 0, 3], dtype=np.int32)
    source, whole = subset(rows), open_source(file)
    assert (len(source), source.kind, source.classes) == (3, "features", ("a", "b", "c", "d"))
    assert_array_equal(source.labels, Y[rows])
    assert [source.name(row) for row in range(3)] == ["row 7", "row 0", "row 3"]
    for row, original in enumerate(rows):
        assert_array_equal(source.item(row).x, X[original])
        assert source.item(row).y == Y[original]
    assert_allclose(source.scale, X[rows].std(axis=0), rtol=1e-5)
    assert source.digest_scope == whole.digest_scope + "; which 3 rows"
    assert source.digest == subset(rows.astype(np.uint8)).digest
    assert len({source.digest, subset(rows[::-1]).digest, subset(rows[:2]).digest, whole.digest}) == 4


def test_a_subset_of_unlabeled_rows_has_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4, 4), np.uint8))
    np.save(tmp_path / "rows.npy", [1])
    entry = SimpleNamespace(source=str(tmp_path / "a.npz"), rows=str(tmp_path / "rows.npy"), x="x", y="y")
    source = open_source(entry)
    assert (source.labels, source.scale, source.item(0).y) == (None, None, None)


def test_refused_rows(subset: Any) -> None:
    for rows, message in [
        ([0, 10], "lists row 10, but the source has rows 0 to 9"),
        ([-1], "lists row -1, but"),
        ([2, 5, 2, 2], "lists row 2 3 times"),
        ([[0, 1]], r"holds int64 \(1, 2\)"),
        ([0.0, 1.0], "holds float64"),
        ([True, False], "holds bool"),
        (np.array([], dtype=int), r"holds int64 \(0,\)"),
    ]:
        with pytest.raises(EdistillError, match=message):
            subset(rows)


def test_files_that_hold_no_rows(file: str, tmp_path: Path) -> None:
    for name, message in ((file, "it is a zip archive"), (f"{tmp_path}/gone.npy", "is not an .npy")):
        with pytest.raises(EdistillError, match=message):
            open_source(SimpleNamespace(source=file, rows=name, x="x", y="y"))


def test_inputs_are_image_files_or_one_source(file: str, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("b.png", "a.png")]
    for value, name in enumerate(names):
        Image.new("RGB", (3, 2), (value, 0, 0)).save(name)
    images = open_inputs(names)
    assert [images.name(row) for row in range(2)] == names
    assert [int(images.item(row).x[0, 0, 0]) for row in range(2)] == [0, 1]
    assert len(open_inputs([file])) == 10
    with pytest.raises(EdistillError, match=r"a\.npz is not an image file"):
        open_inputs([names[0], file])
    with pytest.raises(EdistillError, match=r"There is no .*gone\.png"):
        open_inputs([str(tmp_path / "gone.png")])


@pytest.mark.thorough
def test_data_starts_without_torch() -> None:
    check = (
        "import ensemble_distill.data as data, ensemble_distill.data.views as views, sys\n"
        "list(data.source_kinds()), [views.open_view(name) for name in views.view_names()]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[2])
