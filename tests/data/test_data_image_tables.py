"""Tables that name picture files: rows are those files, in the table's order, and nothing outside its folder."""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import refused

from ensemble_distill.data import open_inputs, open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.subset import Subset
from ensemble_distill.facts import InputColumns
from ensemble_distill.settings import settings_from
from ensemble_distill.workspace import Workspace

ROWS = 12
FILES = [f"photos/{'ab'[row % 2]}/{row:02d}.png" for row in range(ROWS)]
KINDS = ["cat" if row % 3 else "dog" for row in range(ROWS)]
DECLARED = Columns(images="file", labels=("kind",), classes=("cat", "dog"))
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 5, 4, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, pixels in zip(FILES, PIXELS, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def written(folder: Path, name: str = "photos.csv", **columns: Sequence[Any]) -> Path:
    columns = columns or {"kind": KINDS, "file": FILES}
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return folder / name


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_the_files_in_their_order(photos: Path, suffix: str) -> None:
    order = list(range(ROWS))[::-1]
    table = written(photos, file=[FILES[row] for row in order], kind=[KINDS[row] for row in order])
    if suffix == "parquet":
        arrow = pytest.importorskip("pyarrow.csv")
        import pyarrow.parquet as parquet

        parquet.write_table(arrow.read_csv(table), table.with_suffix(".parquet"))
        table = table.with_suffix(".parquet")
    source = open_source(table, columns=DECLARED)
    assert (source.kind, source.classes, len(source)) == ("pixels", ("cat", "dog"), ROWS)
    assert_array_equal(np.stack([source.item(row).x for row in range(ROWS)]), PIXELS[order])
    assert_array_equal(source.labels, [["cat", "dog"].index(KINDS[row]) for row in order])
    assert [source.name(row) for row in range(ROWS)] == [FILES[row] for row in order]
    assert source.columns == InputColumns(images="file")  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(source))
    assert again.digest == source.digest
    assert_array_equal(again.item(3).x, source.item(3).x)
    assert Subset(source, np.array([5])).columns == InputColumns(images="file")


def test_labels_of_every_task(photos: Path) -> None:
    table = written(
        photos, file=FILES, number=[row % 3 for row in range(ROWS)], wet=[1, 0] * 6, far=[0, 0, 1] * 4, cm=range(ROWS)
    )
    numbered = open_source(table, columns=Columns(images="file", labels=("number",)))
    assert (numbered.classes, numbered.labels.tolist()) == (None, [0, 1, 2] * 4)  # type: ignore[union-attr]
    several = open_source(table, "multi-label", columns=Columns(images="file", labels=("wet", "far")))
    assert several.classes == ("wet", "far")
    assert_array_equal(several.labels, np.stack([[1, 0] * 6, [0, 0, 1] * 4], axis=1))
    length = open_source(table, "regression", columns=Columns(images="file", labels=("cm",)))
    assert_array_equal(length.labels, np.arange(ROWS, dtype=np.float32))
    unlabeled = open_source(table, columns=Columns(images="file", labels=("kind",), classes=("cat", "dog")))
    assert unlabeled.labels is None
    assert open_inputs([str(table)], columns=DECLARED).item(0).y is None


def test_the_digest_covers_pictures_order_and_labels(photos: Path) -> None:
    def digest(**columns: Sequence[Any]) -> str:
        return open_source(written(photos, **columns), columns=DECLARED).digest

    first = digest(file=FILES, kind=KINDS)
    assert digest(other=range(ROWS), kind=KINDS, file=FILES) == first, "other columns say nothing"
    assert digest(file=FILES[::-1], kind=KINDS) != first
    assert digest(file=FILES, kind=KINDS[::-1]) != first
    Image.fromarray(PIXELS[0][::-1].copy()).save(photos / FILES[0])
    assert digest(file=FILES, kind=KINDS) != first


def test_a_picture_may_stand_in_several_rows(photos: Path) -> None:
    source = open_source(written(photos, file=[FILES[0]] * 3, kind=KINDS[:3]), columns=DECLARED)
    assert len(source) == 3
    assert_array_equal(source.item(2).x, PIXELS[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret.png", ("row 1", "'../secret.png'", "own folder")),
        ("photos/../../secret.png", ("row 1", "own folder")),
        ("/etc/hostname", ("row 1", "'/etc/hostname'", "own folder")),
        ("photos/none.png", ("row 1", "photos/none.png", "No such file")),
        ("photos\\a\\00.png", ("row 1", "Write paths with /")),
        ("photos", ("row 1", "not a file")),
        ("pipe.png", ("row 1", "not a file")),
        ("", ("row 1", "names no file")),
        ("a" * 300, ("row 1", "too long")),
    ],
)
def test_what_is_no_picture_of_the_folder_is_refused_by_row(photos: Path, name: str, words: tuple[str, ...]) -> None:
    os.mkfifo(photos / "pipe.png")
    Image.fromarray(PIXELS[0]).save(photos.parent / "secret.png")
    with refused("photos.csv: column file", *words):
        open_source(written(photos, file=[FILES[0], name], kind=KINDS[:2]), columns=DECLARED)


def test_other_values_than_texts_are_refused(photos: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    for values in ([FILES[0], None], [1, 2]):
        parquet.write_table(pa.table({"file": values}), photos / "a.parquet")
        with refused("a.parquet: column file", "names no file"):
            open_source(photos / "a.parquet", columns=Columns(images="file"))


def test_a_file_that_does_not_decode_is_refused_by_row_and_name(photos: Path) -> None:
    (photos / FILES[2]).write_bytes((photos / FILES[2]).read_bytes()[:40])
    source = open_source(written(photos), columns=DECLARED)
    assert_array_equal(source.item(1).x, PIXELS[1])
    with refused(FILES[2], "row 2", "take that row out of", "photos.csv"):
        source.item(2)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (Columns(images="path", labels=("kind",)), ("no column 'path'", "data.columns.images")),
        (Columns(images="file", labels=("kind",)), ("column kind is 'dog' at row 0", "data.columns.classes")),
        (
            Columns(images="file", labels=("kind",), classes=("cat", "cow")),
            ("column kind is 'dog' at row 0", "data.columns.classes (cat, cow)"),
        ),
    ],
)
def test_columns_that_are_not_as_declared_are_refused(photos: Path, declared: Columns, words: tuple[str, ...]) -> None:
    with refused(*words):
        open_source(written(photos), columns=declared)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, ("data.columns.inputs", "data.columns.images")),
        ({"images": "file", "inputs": ["file"]}, ("'file'", "in inputs and in images")),
        ({"images": "file", "labels": ["file"]}, ("'file'", "in images and in labels")),
        ({"images": "file", "categories": {"a": ["x"]}}, ("'a'", "not in inputs")),
    ],
)
def test_settings_that_contradict_each_other(photos: Path, columns: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(*words):
        settings_from({"data": {"columns": columns}}, photos)


def test_a_workspace_splits_them_and_views_act_on_pixels(photos: Path) -> None:
    values = {
        "data": {
            "all": str(written(photos)),
            "split": {"test": 0.25},
            "columns": {"images": "file", "labels": ["kind"], "classes": ["cat", "dog"]},
        },
        "views": {"transform": "crop-flip+mixup"},
    }
    plans = Workspace(settings_from(values, photos)).splits()
    assert {name: len(plan.source) for name, plan in plans.items()} == {"train": 9, "test": 3}
    assert plans["train"].source.kind == "pixels"
