"""Parquet with pictures in it, as `datasets` writes it or without a word of what its columns are, read by row groups;
and columns of lists and tensors."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_data_saved import AGES, FEATURES, LABELS, NAMES, PIXELS, ROWS, columns, png, saved
from tiny import refused

from ensemble_distill.data import open_source, row_groups
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.memo import Memo
from ensemble_distill.data.row_groups import RowGroups
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import InputColumns
from ensemble_distill.settings import settings_from
from ensemble_distill.workflows.inspect import inspect

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

GROUP = 5  # rows
RNG = np.random.default_rng(0)


def told(table: Any, features: dict[str, Any] | None = None) -> Any:
    """With what `datasets` says of the columns in the metadata."""
    said = {"info": {"features": FEATURES if features is None else features}}
    return table.replace_schema_metadata({"huggingface": json.dumps(said)})


def written(path: Path, table: Any, rows: int = GROUP) -> Path:
    parquet.write_table(table, path, row_group_size=rows)
    return path


def shown(source: Any) -> np.ndarray[Any, Any]:
    return np.stack([source.item(row).x for row in range(len(source))])


# --- pictures ---------------------------------------------------------------------------------------------------


def test_pictures_of_datasets_need_no_settings(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "train.parquet", told(pa.table(columns()))))
    assert (source.kind, source.classes, len(source), source.name(7)) == ("pixels", tuple(NAMES), ROWS, "row 7")
    assert_array_equal(shown(source), PIXELS)
    assert_array_equal(source.labels, LABELS)  # type: ignore[arg-type]
    assert source.columns == InputColumns(images="img")  # type: ignore[attr-defined]
    assert not source.remarks
    assert source.digest == open_source(saved(tmp_path / "train")).digest, "the rows count, not the file they are in"


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("bare", [False, True])
def test_pictures_that_nothing_tells_of_are_declared(tmp_path: Path, ending: str, bare: bool) -> None:
    table = pa.table(columns(**({"img": pa.array([png(one) for one in PIXELS], pa.binary())} if bare else {})))
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        written(path, table)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=GROUP)
    source = open_source(path, columns=Columns(images="img", labels=("label",)))
    assert (source.kind, source.classes) == ("pixels", None)
    assert_array_equal(shown(source), PIXELS)
    assert_array_equal(source.labels, LABELS)  # type: ignore[arg-type]
    with refused("nothing says which of its columns", "img, label, age, who"):
        open_source(path)
    with refused("who", "is 'a' at row 0"):
        open_source(path, columns=Columns(images="who"))
    with refused("column age", "which names no file"):
        open_source(path, columns=Columns(images="age"))


def test_a_pattern_of_files_is_one_split(tmp_path: Path) -> None:
    table = told(pa.table(columns()))
    for at, start in enumerate((0, 9)):
        written(tmp_path / f"train-0000{at}-of-00002.parquet", table.slice(start, (9, ROWS - 9)[at]))
    pattern = f"{tmp_path}/train-{{00000..00001}}-of-00002.parquet"
    source = open_source(pattern)
    assert_array_equal(shown(source), PIXELS)
    assert source.digest == open_source(written(tmp_path / "all.parquet", table)).digest
    numbers = open_source(pattern, "regression", columns=Columns(("age",), labels=("age",)))
    assert_array_equal(shown(numbers)[:, 0], AGES)
    with refused("there is no", "train-00002-of-00002.parquet"):
        open_source(pattern.replace("00001}", "00002}"))
    written(tmp_path / "train-00001-of-00002.parquet", table.drop_columns(["age"]))
    with refused("00001-of-00002.parquet has the columns img, label, who", "img, label, age, who"):
        open_source(pattern)


def test_tables_of_a_pattern_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "a-1.csv").write_text("x,y,z\n1,0,7\n2,1,7\n")
    (tmp_path / "a-2.csv").write_text("y,x\n1,3\n")
    source = open_source(f"{tmp_path}/a-{{1..2}}.csv", columns=Columns(("x",), labels=("y",)))
    assert_array_equal(shown(source)[:, 0], [1, 2, 3])
    assert_array_equal(source.labels, [0, 1, 1])  # type: ignore[arg-type]
    (tmp_path / "a-2.csv").write_text("y,w\n1,3\n")
    with refused("a-2.csv has no column 'x'", "it has y, w"):
        open_source(f"{tmp_path}/a-{{1..2}}.csv", columns=Columns(("x",), labels=("y",)))


# --- a group at a time ------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Each part that is read, with its column."""
    found: list[tuple[int, str]] = []
    whole = RowGroups._read

    def counted(self: RowGroups, at: int, name: str) -> Any:
        found.append((at, name))
        return whole(self, at, name)

    monkeypatch.setattr(RowGroups, "_read", counted)
    return found


def test_groups_are_read_once_where_they_fit_and_pictures_alone(tmp_path: Path, read: list[tuple[int, str]]) -> None:
    source: Any = open_source(written(tmp_path / "a.parquet", told(pa.table(columns()))))
    assert {name for _, name in read} == {"label"}, "which of them has a class"
    read.clear()
    source._memo = Memo(ROWS, limit=0)
    for row in RNG.permutation(ROWS):
        assert_array_equal(source.item(row).x, PIXELS[row])
    assert sorted(read) == [(at, "img") for at in range(-(-ROWS // GROUP))]


def test_of_larger_data_the_groups_read_last_are_kept(
    tmp_path: Path, read: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "KEPT", 1000)
    monkeypatch.setattr(row_groups, "SLOW", 10)
    source: Any = open_source(written(tmp_path / "a.parquet", told(pa.table(columns()))))
    (remark,) = source.remarks
    assert f"of up to {GROUP} rows" in remark
    assert "row_group_size=100" in remark
    read.clear()
    source._memo = Memo(ROWS, limit=0)
    for row in (0, 1, 4, 20, 22, 0):
        assert_array_equal(source.item(row).x, PIXELS[row])
    assert read == [(0, "img"), (4, "img"), (0, "img")]
    assert sum(one.nbytes for one in source.parts._kept.values()) < 2000


def test_a_process_reads_the_file_for_itself(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "a.parquet", told(pa.table(columns()))))
    source.item(3)
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert_array_equal(pickle.loads(sent).item(11).x, PIXELS[11])


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", told(pa.table(columns())))
    source = open_source(path)
    os.utime(path, ns=(1, 1))
    with refused("a.parquet changed while it was read"):
        source.item(0)


def test_a_group_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(written(tmp_path / "a.parquet", told(pa.table(columns()))))
    monkeypatch.setattr(row_groups, "memory", lambda: 100)
    with refused("a.parquet: column img of row group 0 claims", "100", "smaller row groups"):
        source.item(0)


def test_no_byte_of_a_file_crashes_the_reader(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", told(pa.table(columns())))
    whole = path.read_bytes()
    read, rng = 0, np.random.default_rng(0)
    flips = [(int(at), int(rng.integers(1, 256))) for at in rng.integers(0, len(whole), 120)]
    flips += [(found.start(), 0x80) for name in columns() for found in re.finditer(name.encode(), whole)]  # no UTF-8
    for at, bits in flips:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
        try:
            source = open_source(path)
            for row in range(len(source)):
                source.item(row)
        except Exception as error:
            assert type(error).__name__ == "EdistillError", (at, repr(error))  # noqa: PT017
            continue
        read += 1
        assert len(source) == ROWS
    assert 5 < read < len(flips) - 5, "some bytes matter, and some do not"


def test_texts_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    raw = pa.array([b"ab", b"\xff\xfe"], pa.binary())
    odd = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    written(tmp_path / "a.parquet", pa.table({"t": odd}))
    with refused("a.parquet cannot be read as parquet"):
        open_source(tmp_path / "a.parquet", columns=Columns(text="t"))


def test_pictures_that_are_none(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": png(one), "path": None} for one in PIXELS]
    cells[4] = {"bytes": None, "path": "elsewhere.png"}
    cells[6] = {"bytes": b"hello", "path": None}
    source = open_source(written(tmp_path / "a.parquet", told(pa.table(columns(img=pa.array(cells, kind))))))
    with refused("a.parquet: img of row 4 holds no picture", "elsewhere.png"):
        source.item(4)
    with refused("a.parquet: img of row 6 does not decode"):
        source.item(6)
    written(tmp_path / "b.parquet", told(pa.table(columns(img=pa.array(AGES)))))
    with refused("column img holds float", "struct<bytes: binary, path: string>"):
        open_source(tmp_path / "b.parquet")


# --- lists and tensors ------------------------------------------------------------------------------------------

TENSORS = RNG.normal(size=(ROWS, 2, 3)).astype(np.float32)


def tensors(kind: str) -> Any:
    if kind == "tensor":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(TENSORS)
    return pa.array(
        TENSORS.tolist(),
        {
            "lists": pa.list_(pa.list_(pa.float32())),
            "large": pa.large_list(pa.list_(pa.float32(), 3)),
            "fixed": pa.list_(pa.list_(pa.float32(), 3), 2),
        }[kind],
    )


@pytest.mark.parametrize("kind", ["tensor", "lists", "large", "fixed"])
def test_lists_and_tensors_are_rows(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_distill.data.reading_arrow.BLOCK", 4)
    path = written(tmp_path / "a.parquet", pa.table({"z": LABELS, "x": tensors(kind)}))
    source = open_source(path, columns=Columns(array="x", labels=("z",)))
    assert (source.kind, len(source)) == ("series", ROWS)
    assert_array_equal(shown(source), TENSORS)
    assert_array_equal(source.labels, LABELS)  # type: ignore[arg-type]
    assert source.columns == InputColumns(array="x")  # type: ignore[attr-defined]
    np.savez(tmp_path / "a.npz", x=TENSORS, y=LABELS)
    assert source.digest == open_source(tmp_path / "a.npz").digest
    assert len(open_source(path, columns=Columns(array="x"))) == ROWS


def test_lists_of_json_and_of_datasets_are_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"x": one.tolist(), "y": int(y)}) for one, y in zip(TENSORS[:, 0], LABELS, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = open_source(tmp_path / "a.jsonl", columns=Columns(array="x", labels=("y",)))
    assert source.kind == "features"
    assert_array_equal(shown(source), TENSORS[:, 0])
    features = {"x": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}, "y": FEATURES["label"]}
    table = told(pa.table({"x": TENSORS[:, 0].tolist(), "y": LABELS}), features)
    declared = Columns(array="x", labels=("y",))
    assert_array_equal(shown(open_source(written(tmp_path / "a.parquet", table), columns=declared)), TENSORS[:, 0])
    assert open_source(saved(tmp_path / "hf", table, features), columns=declared).classes == tuple(NAMES)


def test_pixels_and_tokens_in_lists(tmp_path: Path) -> None:
    gray = PIXELS[..., 0]
    pixels = pa.array(gray.tolist(), pa.list_(pa.list_(pa.uint8())))
    source = open_source(written(tmp_path / "a.parquet", pa.table({"x": pixels})), columns=Columns(array="x"))
    assert source.kind == "pixels"
    assert_array_equal(shown(source), gray[..., None])


ODD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "one shorter": (lambda: [[1.0, 2], [1, 2], [1]], ("at row 2", "1 values", "2 before")),
    "one of another shape inside": (
        lambda: [[[1.0, 2], [1, 2]], [[1, 2], [1]], [[1, 2], [1, 2]]],
        ("at row 1", "1 values", "2 before"),
    ),
    "a row missing": (lambda: [[1.0], None, [1]], ("lacks a value at row 1",)),
    "a value missing": (lambda: [[1.0, 2], [2, None], [1, 2]], ("lacks a value at row 1",)),
    "texts": (lambda: [["a"], ["b"], ["c"]], ("holds list<", "numbers")),
    "numbers": (lambda: [1.0, 2, 3], ("holds double", "numbers")),
    "not a number": (lambda: [[1.0], [2.0], [float("nan")]], ("is nan at (0,) of row 2",)),
    "whole numbers": (lambda: [[1], [2], [3]], ("int64", "Accepted are")),
}


@pytest.mark.parametrize("name", ODD)
def test_lists_that_make_no_array_are_refused_by_row(tmp_path: Path, name: str) -> None:
    values, words = ODD[name]
    path = written(tmp_path / "a.parquet", pa.table({"x": values()}))
    with refused("a.parquet: column x", *words):
        open_source(path, columns=Columns(array="x"))


@pytest.mark.parametrize("odd", ["[1, [2]]", '["a", "b"]', '"no"', "[1]", "null"])
def test_lists_of_json_that_make_no_array(tmp_path: Path, odd: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"x": [1, 2]}}\n{{"x": {odd}}}\n')
    with refused("column x", "at row 1", "Give every row a list"):
        open_source(tmp_path / "a.jsonl", columns=Columns(array="x"))


def test_a_csv_has_no_lists(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x\n"[1, 2]"\n')
    with refused("column x", "at row 0: it is '[1, 2]'"):
        open_source(tmp_path / "a.csv", columns=Columns(array="x"))


def test_blocks_of_other_shapes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_distill.data.reading_arrow.BLOCK", 2)
    path = written(tmp_path / "a.parquet", pa.table({"x": [[1.0, 2], [1, 2], [1, 2, 3]]}))
    with refused("column x is of shape (3,) at row 2", "(2,) before"):
        open_source(path, columns=Columns(array="x"))


def test_lists_are_no_columns_of_numbers_nor_labels(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", pa.table({"x": [[1.0], [2.0]], "y": [0, 1]}))
    with refused("column x holds list<", "data.columns.array"):
        open_source(path, columns=Columns(("x", "y")))
    with refused("column x holds list<"):
        open_source(path, columns=Columns(("y",), labels=("x",)))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"array": "x", "inputs": ["x"]}, ("'x' in inputs and in array",)),
        ({"array": "x", "images": "x"}, ("'x' in images and in array",)),
        ({"array": "x", "text": "x"}, ("'x' in text and in array",)),
        ({"array": "x", "labels": ["x"]}, ("'x' in array and in labels",)),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, declared: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(*words):
        settings_from({"teachers": {"path": "t"}, "data": {"train": "a.parquet", "columns": declared}}, tmp_path)


def test_classes_of_one_name_are_refused_where_they_are_named(tmp_path: Path) -> None:
    features = {**FEATURES, "label": {"names": ["cat", "dog", "cat"], "_type": "ClassLabel"}}
    with refused("two classes of label are called 'cat'", "cast_column"):
        open_source(written(tmp_path / "a.parquet", told(pa.table(columns()), features)))


def test_inspect_knows_patterns_and_tells_of_a_table_in_one_sentence(tmp_path: Path) -> None:
    table = told(pa.table(columns()))
    for at in range(2):
        written(tmp_path / f"train-{at}.parquet", table)
    assert inspect(tmp_path / "train-{0..1}.parquet")["rows"] == 2 * ROWS
    (tmp_path / "a.csv").write_text("x,y\n1,0\n")
    with pytest.raises(EdistillError) as error:
        inspect(tmp_path / "a.csv")
    assert all(word in str(error.value) for word in ("a.csv is a table", "x, y", "data.columns"))
    assert "teachers" not in str(error.value)
