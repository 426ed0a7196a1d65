"""Tables: declared columns become numbers, whatever the file; what is not as declared is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tables_helpers import DATA, DECLARED, ROWS, expected, written
from tiny import refused

from ensemble_distill.data import open_inputs, open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.errors import EdistillError
from ensemble_distill.settings import settings_from

HEADER = ["id", "age", "sex", "fare", "deck", "survived"]


def changed(column: str, row: int, value: Any) -> dict[str, list[Any]]:
    values = list(DATA[column])
    values[row] = value
    return {**DATA, column: values}


def rows_of(source: Any) -> np.ndarray[Any, Any]:
    return np.stack([source.item(row).x for row in range(len(source))])


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow", ".feather"])
def test_the_same_rows_from_every_kind_of_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"people{suffix}"
    if suffix in (".csv", ".tsv"):
        monkeypatch.setattr("ensemble_distill.data.reading_csv.BLOCK", 7)
        written(path, delimiter="\t" if suffix == ".tsv" else ",")
    else:
        pa = pytest.importorskip("pyarrow")
        table = pa.table({**DATA, "sex": pa.array(DATA["sex"]).dictionary_encode(), "odd": [[1]] * ROWS})
        if suffix == ".parquet":
            import pyarrow.parquet as parquet

            parquet.write_table(table, path, row_group_size=7)
        else:
            with pa.ipc.new_file(path, table.schema) as file:
                file.write_table(table, max_chunksize=7)
    source = open_source(path, columns=DECLARED)
    assert_array_equal(rows_of(source), expected())
    assert source.labels is not None
    assert_array_equal(source.labels, [0 if y == "no" else 1 for y in DATA["survived"]])
    assert (source.kind, source.classes, len(source)) == ("features", ("no", "yes"), ROWS)
    csv_source = open_source(written(tmp_path / "again.csv"), columns=DECLARED)
    assert source.digest == csv_source.digest, "the rows count, and not the file that they are in"


def test_categories_as_their_places(tmp_path: Path) -> None:
    declared = Columns(("deck", "sex"), DECLARED.categories, "index", ("survived",), ("no", "yes"))
    x = rows_of(open_source(written(tmp_path / "a.csv"), columns=declared))
    assert_array_equal(x[:, 0], [("A", "B", "C, D").index(value) for value in DATA["deck"]])
    assert x.shape == (ROWS, 2)


def test_labels_of_every_task(tmp_path: Path) -> None:
    more = {**DATA, "a": [row % 2 for row in range(ROWS)], "b": [row % 5 == 0 for row in range(ROWS)]}
    more["b"] = [int(value) for value in more["b"]]
    path = written(tmp_path / "a.csv", more)

    def labels(task: str, *names: str) -> Any:
        return open_source(path, task, columns=Columns(("age",), labels=names))

    numbers = labels("classification", "a")
    assert (numbers.labels.dtype, numbers.classes) == (np.int64, None)
    several = labels("multi-label", "a", "b")
    assert (several.labels.shape, several.classes) == ((ROWS, 2), ("a", "b"))
    target = labels("regression", "fare")
    assert_array_equal(target.labels, np.array(DATA["fare"], np.float32))
    targets = labels("regression", "fare", "a")
    assert (targets.labels.shape, targets.classes) == ((ROWS, 2), ("fare", "a"))
    with refused("regression", "multi-label"):
        labels("classification", "a", "b")


def test_a_table_without_its_labels_is_unlabeled(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", {name: values for name, values in DATA.items() if name != "survived"})
    assert open_source(path, columns=DECLARED).labels is None
    assert open_inputs([str(path)], columns=DECLARED).labels is None


def test_a_byte_order_mark_and_quotes_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_array_equal(rows_of(open_source(path, columns=Columns(("age",)))), expected()[:, :1])


def test_it_goes_to_other_processes(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "a.csv"), columns=DECLARED)
    again = pickle.loads(pickle.dumps(source))
    assert (again.groups, again.digest) == (source.groups, source.digest)  # type: ignore[attr-defined]


# --- refusals ---------------------------------------------------------------------------------------------------


WRONG: dict[str, tuple[dict[str, list[Any]], tuple[str, ...]]] = {
    "a number of Python's alone": (changed("age", 5, "1_0"), ("column age is '1_0' at row 5", "which is not a number")),
    "no number": (changed("age", 5, "old"), ("column age is 'old' at row 5", "data.columns.categories")),
    "empty": (changed("age", 6, ""), ("column age is '' at row 6",)),
    "nan": (changed("fare", 7, "nan"), ("column fare is nan at row 7",)),
    "too large": (changed("fare", 8, "1e60"), ("column fare is 1e60 at row 8",)),
    "unknown": (changed("deck", 9, "Z"), ("column deck is 'Z' at row 9", "3 declared", "data.columns.categories.deck")),
    "no class": (changed("survived", 3, "maybe"), ("column survived is 'maybe' at row 3", "no, yes")),
    "no label of names": (
        changed("survived", 3, ""),
        ("column survived is '' at row 3", "data.transfer", "without that"),
    ),
    "missing": ({k: v for k, v in DATA.items() if k != "fare"}, ("no column 'fare'", "data.columns.inputs")),
    "misspelled": ({("fares" if k == "fare" else k): v for k, v in DATA.items()}, ("did you mean 'fares'",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_as_declared(tmp_path: Path, name: str) -> None:
    data, said = WRONG[name]
    with refused("a.csv", *said):
        open_source(written(tmp_path / "a.csv", data), columns=DECLARED)


TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ragged": ("age\n1\n2,3\n", ("row 1 has 2 fields, and the header names 1",)),
    "an empty line": ("age,b\n1,2\n\n3,4\n", ("row 1 has an empty line",)),
    "twice": ("age,age\n1,2\n", ("the column 'age' 2 times",)),
    "no rows": ("age\n", ("has no rows",)),
    "nothing": ("", ("has no header",)),
    "semicolons": ("age;b\n1;2\n", ("';' in it", "commas")),
    "an open quote": ('age\n"1\n', ("cannot be read as CSV",)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_table(tmp_path: Path, name: str) -> None:
    text, said = TEXTS[name]
    (tmp_path / "a.csv").write_text(text)
    with refused("a.csv", *said):
        open_source(tmp_path / "a.csv", columns=Columns(("age",)))


@pytest.mark.parametrize("value", ["", "nan"])
def test_a_table_of_no_labels_is_told_where_it_belongs(tmp_path: Path, value: str) -> None:
    data = DATA | {"a": [value] * ROWS}
    with refused("a.csv", "column a is", "at row 0", "data.transfer", "without that column"):
        open_source(written(tmp_path / "a.csv", data), columns=Columns(("age",), labels=("a",)))
    del data["a"]  # as the remedy says
    assert open_source(written(tmp_path / "a.csv", data), columns=Columns(("age",), labels=("a",))).labels is None


def test_a_key_that_stands_twice_in_a_row_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"age": 1}\n{"age": 2, "age": 3}\n')
    with refused("a.jsonl", "row 1", "'age' stands in it 2 times"):
        open_source(tmp_path / "a.jsonl", columns=Columns(("age",)))


def test_keys_of_json_that_the_first_row_lacks(tmp_path: Path) -> None:
    path, columns = tmp_path / "a.jsonl", Columns(("age",), labels=("fate",))
    path.write_text('{"age": 1}\n' + '{"age": 2, "fate": 1, "note": "kept"}\n' * 2)
    with refused("a.jsonl", "column fate is None at row 0", "drop that row"):
        open_source(path, columns=columns)
    path.write_text('{"age": 2, "fate": 1}\n{"age": 1}\n')
    with refused("a.jsonl", "column fate is None at row 1", "drop that row"):
        open_source(path, columns=columns)
    path.write_text('{"age": 1}\n{"age": 2, "note": "kept"}\n')
    assert open_source(path, columns=columns).labels is None
    path.write_text('{"fate": 0}\n{"age": 2, "fate": 1}\n')
    with refused("a.jsonl", "column age is None at row 0"):
        open_source(path, columns=columns)
    path.write_text('{"fate": 0}\n{"agee": 2, "fate": 1}\n')
    with refused("a.jsonl has no column 'age'", "did you mean 'agee'"):
        open_source(path, columns=columns)


def test_bytes_that_are_no_text_and_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"age\n\xff\xfe\n")
    with refused("a.csv is not text in UTF-8"):
        open_source(tmp_path / "a.csv", columns=Columns(("age",)))
    pytest.importorskip("pyarrow")
    for suffix in ("parquet", "arrow"):
        (tmp_path / f"a.{suffix}").write_bytes(b"hello")
        with refused(f"a.{suffix} cannot be read as {suffix}"):
            open_source(tmp_path / f"a.{suffix}", columns=Columns(("age",)))


def test_parquet_of_other_types_and_with_nothing_in_a_row(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"age": [1.0, None], "when": [[1], [2]]}), tmp_path / "a.parquet")
    with refused("column age is None at row 1"):
        open_source(tmp_path / "a.parquet", columns=Columns(("age",)))
    with refused("column when holds list<", "numbers, texts and booleans"):
        open_source(tmp_path / "a.parquet", columns=Columns(("when",)))


def test_some_of_the_labels_and_no_declaration(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv")
    with refused("the label column 'survived' and not 'fate'"):
        open_source(path, "multi-label", columns=Columns(("age",), labels=("survived", "fate")))
    with refused("nothing says which of its columns", "id, age, sex, fare, deck, survived", "data.columns"):
        open_source(path)
    with refused("nowhere.csv does not exist"):
        open_source(tmp_path / "nowhere.csv", columns=DECLARED)


SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "all alone": ({"all": "a.csv"}, ("data.all is set", "data.split")),
    "a seed alone": ({"all": "a.csv", "split": {"seed": 1}}, ("nothing says how it is split",)),
    "split alone": ({"split": {"test": 0.5}}, ("data.split is set", "no data.all")),
    "all of it": ({"all": "a.csv", "split": {"test": 0.5, "validation": 0.5}}, ("gives away 1 of",)),
    "both": ({"all": "a.csv", "split": {"test": 0.5}, "test": "b.csv"}, ("data.test is set", "data.split")),
    "a column twice": ({"columns": {"inputs": ["a", "a"]}}, ("data.columns.inputs names 'a' twice",)),
    "a label among inputs": ({"columns": {"inputs": ["a"], "labels": ["a"]}}, ("'a' in inputs and in labels",)),
    "no such input": ({"columns": {"inputs": ["a"], "categories": {"b": ["x"]}}}, ("has 'b', which is not in inputs",)),
    "no inputs": ({"columns": {"inputs": []}}, ("data.columns.inputs",)),
    "a class twice": ({"columns": {"inputs": ["a"], "classes": ["x", "x"]}}, ("data.columns.classes names 'x' twice",)),
    "a value twice": ({"columns": {"inputs": ["a"], "categories": {"a": ["x", "x"]}}}, ("give each once",)),
    "classes of two": (
        {"columns": {"inputs": ["a"], "labels": ["b", "c"], "classes": ["x", "y"]}},
        ("data.columns.classes is set, and there are 2",),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_do_not_go_together(name: str) -> None:
    data, said = SETTINGS[name]
    with refused(*said):
        settings_from({"data": data}, Path())


@pytest.mark.parametrize(
    ("content", "declared", "words"),
    [
        ("x,y\n1,cat\n2,\n", Columns(("x",), labels=("y",), classes=("cat", "dog")), ("is '' at row 1", "transfer")),
        ("x,y\n1,cat\n2,cow\n", Columns(("x",), labels=("y",), classes=("cat", "dog")), ("'cow'", "members' order")),
        ("x,y\n1,1\n2,nan\n", Columns(("x",), labels=("y",)), ("is nan at row 1", "transfer")),
    ],
)
def test_cells_of_labels_that_are_none_say_what_to_do(
    tmp_path: Path, content: str, declared: Columns, words: tuple[str, ...]
) -> None:
    """Not to encode them as members saw inputs encoded, and not to declare what is missing."""
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(EdistillError) as told:
        open_source(tmp_path / "a.csv", columns=declared)
    assert all(word in str(told.value) for word in ("column y", *words))
    assert "encoded" not in str(told.value)
    assert "filled in" not in str(told.value)
