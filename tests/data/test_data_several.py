"""Rows of several arrays: from archives, data sets and tables, rendered and viewed each by itself."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from several_helpers import CLASSES, SIDE, rows, write_arrays, write_table
from tiny import refused

from ensemble_distill.data import open_inputs, open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.rows import plain_input
from ensemble_distill.data.several import apart, arrays_of, held, joined
from ensemble_distill.data.source import Item, Source
from ensemble_distill.data.subset import Subset
from ensemble_distill.data.views import open_view
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import InputColumns, Part, Preprocessing, Several
from ensemble_distill.runtime.records import parsed

COUNT = 9
PIXELS, NUMBERS, Y = rows(COUNT)
TO = Preprocessing((SIDE, SIDE), (0.5,), (0.25,))
BOTH = Several(
    (
        Part("pixel_values", "pixel_values", "pixels", (3, SIDE, SIDE), TO),
        Part("x", "x", "features", (3,)),
    )
)
TABLE = Columns(
    images="photo", inputs=("age", "sex"), categories={"sex": ("f", "m")}, labels=("kind",), classes=CLASSES
)
FACTORY = """
import numpy as np
X = np.load(__file__.replace("data.py", "rows.npz"))

class Rows:
    classes = ["cat", "dog", "owl"]
    def __len__(self):
        return len(X["y"])
    def __getitem__(self, row):
        return CODE

def make():
    return Rows()
"""


def entry(path: Path, x: Any, **others: Any) -> Any:
    return SimpleNamespace(**{"source": str(path), "rows": None, "x": x, "y": "y", **others})


def of_archive(folder: Path, **others: Any) -> Source:
    return open_source(entry(write_arrays(folder / "rows.npz", COUNT, **others), ["pixel_values", "x"]))


def of_factory(
    folder: Path, code: str = '{"pixel_values": X["pixel_values"][row], "x": X["x"][row]}, X["y"][row]'
) -> Source:
    write_arrays(folder / "rows.npz", COUNT)
    (folder / "data.py").write_text(FACTORY.replace("CODE", code))
    return open_source(f"{folder}/data.py:make")


def of_table(folder: Path) -> Source:
    return open_source(write_table(folder, "pets", COUNT), columns=TABLE)


EACH = pytest.mark.parametrize("opened", [of_archive, of_factory, of_table])


# --- what rows hold -----------------------------------------------------------------------------------------------


def test_a_row_is_its_arrays_whatever_they_are() -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Item] = {
        "pixel_values": Item(rng.integers(0, 255, (5, 4, 3), dtype=np.uint8), None, "pixels"),
        "x": Item(rng.normal(size=3).astype(np.float32), None, "features"),
        "text": Item(np.frombuffer("ä text".encode(), np.uint8), None, "text"),
        "ids": Item(np.array([2**24 - 1, 0, 7]), None, "tokens"),
    }
    found = apart(joined(arrays, np.array(2)))
    assert list(found) == list(arrays)
    for name, item in arrays.items():
        assert (found[name].kind, found[name].x.dtype) == (item.kind, item.x.dtype)
        assert_array_equal(found[name].x, item.x)
        assert found[name].y == 2
        assert not found[name].x.flags.writeable


@EACH
def test_each_form_of_data_gives_the_same_rows(tmp_path: Path, opened: Any) -> None:
    source = opened(tmp_path)
    assert (source.kind, len(source), held(source)) == ("several", COUNT, "pixel_values (pixels) and x (features 3)")
    assert_array_equal(source.labels, Y)
    for row in range(COUNT):
        found = apart(source.item(row))
        assert_array_equal(found["pixel_values"].x, PIXELS[row])
        assert_allclose(found["x"].x, NUMBERS[row], atol=1e-6)
        assert source.item(row).y == Y[row]
        wanted = ((PIXELS[row] / np.float32(255) - 0.5) / 0.25).transpose(2, 0, 1)
        x = plain_input(source.item(row), BOTH)
        assert x.dtype == np.float32
        assert_allclose(x, np.concatenate([wanted.ravel(), NUMBERS[row]]), atol=1e-5)
    again = pickle.loads(pickle.dumps(source))
    assert again.digest == source.digest
    assert_array_equal(again.item(3).x, source.item(3).x)


@EACH
def test_some_rows_of_them_know_what_they_are(tmp_path: Path, opened: Any) -> None:
    source, at = opened(tmp_path), np.array([4, 1, 7, 2])
    some = Subset(source, at)
    assert arrays_of(some) == arrays_of(source)
    assert_array_equal(apart(some.item(2))["x"].x, apart(source.item(7))["x"].x)
    scale = some.scale
    assert isinstance(scale, dict)
    wanted = NUMBERS[at].std(axis=0)
    if opened is of_table:  # of categories nothing is noise
        wanted = wanted * [1, 0, 0]
    assert_allclose(scale["x"], wanted, rtol=1e-5)
    assert "pixel_values" not in scale


def test_the_digest_covers_each_array_its_name_and_the_labels(tmp_path: Path) -> None:
    def digest(x: Any = ("pixel_values", "x"), **others: Any) -> str:
        np.savez(tmp_path / "rows.npz", **{"pixel_values": PIXELS, "x": NUMBERS, "y": Y, **others})
        return open_source(entry(tmp_path / "rows.npz", x)).digest

    numbers, pixels = NUMBERS.copy(), PIXELS.copy()
    numbers[5, 0] += 1
    pixels[8, 0, 0, 0] += 1
    named = {"pixel_values": "pixel_values", "numbers": "x"}
    found = [digest(), digest(named), digest(y=Y[::-1]), digest(x=("x", "pixel_values"))]
    for changed in ({"x": numbers}, {"pixel_values": pixels}):
        np.savez(tmp_path / "rows.npz", **{"pixel_values": PIXELS, "x": NUMBERS, "y": Y, **changed})
        found.append(open_source(entry(tmp_path / "rows.npz", ["pixel_values", "x"])).digest)
    assert len(set(found)) == 6
    assert digest() == found[0]


def test_an_archive_of_all_splits_names_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", train_images=PIXELS, train_x=NUMBERS, train_y=Y)
    names = {"pixel_values": "train_images", "x": "train_x"}
    source = open_source(entry(tmp_path / "all.npz", names, y="train_y"))
    assert_array_equal(apart(source.item(1))["pixel_values"].x, PIXELS[1])
    assert_array_equal(source.labels, Y)


def test_a_text_stands_beside_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,age\nthe cat,3\nÄ dog,4\n")
    source = open_source(tmp_path / "rows.csv", columns=Columns(text="text", inputs=("age",)))
    assert held(source) == "text (text) and x (features 1)"
    assert apart(source.item(1))["text"].x.tobytes().decode() == "Ä dog"


def test_a_list_stands_beside_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"seen": [[1, 2], [3, 4.5]], "age": 3}\n{"seen": [[0, 2], [3, 4]], "age": 4}\n'
    )
    source = open_source(tmp_path / "rows.jsonl", columns=Columns(array="seen", inputs=("age",)))
    assert held(source) == "array (series 2 × 2) and x (features 1)"
    assert_array_equal(apart(source.item(0))["array"].x, [[1, 2], [3, 4.5]])
    assert_array_equal(apart(source.item(1))["x"].x, [4])


def test_what_a_row_is_made_of_is_recorded_as_before_where_it_is_one_thing() -> None:
    assert InputColumns(images="file").to_json() == {"images": "file"}
    assert InputColumns(text="said").to_json() == {"text": "said"}
    for columns in (TABLE.asked, InputColumns(text=("one", "other")), InputColumns(inputs=("a",), text="t")):
        assert parsed(InputColumns, columns.to_json()) == columns
    assert TABLE.asked.features == ("age", "sex=f", "sex=m")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "x", "words"),
    [
        ({"x": NUMBERS[:-2]}, ["pixel_values", "x"], ("x has 7 rows", "pixel_values 9")),
        ({}, ["pixel_values", "ages"], ("no array 'ages'", "pixel_values", 'x = ["pixel_values", "x"]')),
        ({"x": np.where(NUMBERS > 2, np.nan, NUMBERS)}, ["pixel_values", "x"], ("x is nan at (0,) of row",)),
        ({"my x": NUMBERS}, ["pixel_values", "my x"], ("'my x'", "not a name of an argument")),
        ({"class": NUMBERS}, ["class"], ("'class'", "not a name of an argument")),
        ({"logits": NUMBERS}, ["pixel_values", "logits"], ("'logits'", "output")),
        ({"ids": np.full((COUNT, 4), -1)}, ["pixel_values", "ids"], ("ids is -1 at 0 of row 0", "16777215")),
        ({"ids": np.full((COUNT, 4), 2**24)}, ["pixel_values", "ids"], ("ids is 16777216",)),
        ({"x": NUMBERS.astype(str)}, ["pixel_values", "x"], ("x holds <U",)),
    ],
)
def test_archives_that_are_no_rows_of_arrays_are_refused(tmp_path: Path, others: Any, x: Any, words: Any) -> None:
    path = tmp_path / "rows.npz"
    pixels, numbers, y = rows(COUNT)
    np.savez(path, **{"pixel_values": pixels, "x": numbers, "y": y, **others})
    with refused(*words):
        open_source(entry(path, x))


def test_the_list_that_a_message_shows_opens_the_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", image=PIXELS, numbers=NUMBERS, y=Y)
    with pytest.raises(EdistillError) as told:
        open_source(tmp_path / "rows.npz")
    shown = str(told.value).partition("list them: x = ")[2].partition(". ")[0]
    assert len(open_source(entry(tmp_path / "rows.npz", eval(shown)))) == COUNT


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('{"a": X["x"][row], "b": X["x"][row][: 2 + (row == 2)]}', ("row 2", "b of features of shape (3,)", "(2,)")),
        (
            '{"a": X["x"][row], **({} if row == 3 else {"b": X["x"][row]})}',
            ("row 3 is features of shape (3,)", "row 0 is a of features", "b of"),
        ),
        ('{"a": X["x"][row], "y": X["x"][row]}', ("row 0", "(x, row['y'])")),
        ('({"a": X["x"][row], "b": X["y"][row]}, 0)', ("b of row 0 is 0, one number",)),
        ('({"a": X["x"][row], "my b": X["x"][row]}, 0)', ("'my b'", "not a name of an argument")),
        ('({"a": X["x"][row] / (row != 1), "b": X["x"][row]}, 0)', ("a is", "row 1")),
        ('({"a": X["x"][row] + np.random.rand(), "b": X["x"][row]}, 0)', ("another x each time row 0",)),
        ("{}", ("row 0 is a table of nothing",)),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_data_sets_that_give_no_rows_of_arrays_are_refused(tmp_path: Path, code: str, words: tuple[str, ...]) -> None:
    with refused(*words):
        source = of_factory(tmp_path, code)
        for row in range(len(source)):
            source.item(row)


def test_arrays_of_one_order_whatever_the_order_of_a_row_s_table(tmp_path: Path) -> None:
    source = of_factory(
        tmp_path, '(dict([("a", X["x"][row]), ("b", X["x"][row] + 1)][:: 1 - 2 * (row % 2)]), X["y"][row])'
    )
    for row in range(COUNT):
        assert list(apart(source.item(row))) == ["a", "b"]
        assert_array_equal(apart(source.item(row))["b"].x, NUMBERS[row] + 1)


def test_a_table_without_one_of_the_columns_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path, "pets", COUNT)
    for missing, key in ((TABLE, "photo"), (TABLE, "age")):
        text = path.read_text()
        path.write_text(text.replace(key, "other", 1))
        with refused(f"no column '{key}'", "data.columns."):
            open_source(path, columns=missing)
        path.write_text(text)


def test_a_network_is_refused_rows_of_other_arrays(tmp_path: Path) -> None:
    item = of_archive(tmp_path).item(0)
    lacking = Several((*BOTH.parts, Part("ages", "ages", "features", (1,))))
    with refused("ages (features)", "which they lack", "pixel_values, x"):
        plain_input(item, lacking)
    with refused("x of shape (4,)", "(3,)"):
        plain_input(item, Several((Part("x", "x", "features", (4,)),)))
    with refused("x (pixels)", "holds features"):
        plain_input(item, Several((Part("x", "x", "pixels", (3, SIDE, SIDE), TO),)))


def test_a_network_of_one_array_is_given_the_one_that_it_can_take(tmp_path: Path) -> None:
    item = of_archive(tmp_path).item(2)
    assert_allclose(plain_input(item, TO), ((PIXELS[2] / 255 - 0.5) / 0.25).transpose(2, 0, 1), atol=1e-5)
    assert_array_equal(plain_input(item, None), NUMBERS[2])
    two = open_source(
        entry(write_arrays(tmp_path / "two.npz", COUNT, more=NUMBERS), ["pixel_values", "x", "more"])
    ).item(0)
    with refused("has 2 arrays", "teachers.inputs"):
        plain_input(two, None)


def test_language_models_take_tokens_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=np.ones((3, 4), int), b=np.ones((3, 4), int))
    with refused("language-modelling", "a (tokens 4) and b (tokens 4)"):
        open_source(entry(tmp_path / "rows.npz", ["a", "b"]), "language-modelling")


# --- views ----------------------------------------------------------------------------------------------------------


def viewed(source: Source, spec: str, row: int = 3, view: int = 1) -> tuple[dict[str, Any], Any]:
    """What a row becomes, by array, before normalization, and its labels."""
    groups = getattr(source, "groups", None)
    plan = open_view(spec, source.scale, groups, arrays_of(source)).plan(0, view, row, len(source))
    items = [source.item(other) for other in plan.rows]
    x = plan.x(items, Several((BOTH.parts[0], BOTH.parts[1])))
    size = 3 * SIDE * SIDE
    return {"pixel_values": x[:size].reshape(3, SIDE, SIDE), "x": x[size:]}, plan.y(items)


def test_a_view_transforms_the_arrays_that_it_knows_as_if_they_were_alone(tmp_path: Path) -> None:
    source = of_archive(tmp_path)
    found, y = viewed(source, "crop-flip")
    alone = open_view("crop-flip").plan(0, 1, 3, COUNT).x([Item(PIXELS[3], Y[3], "pixels")], TO)
    assert_array_equal(found["pixel_values"], alone)
    assert_array_equal(found["x"], NUMBERS[3])
    assert y == (Y[3], Y[3], 1.0)


def test_two_pictures_of_a_row_move_alike_and_get_noise_of_their_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=PIXELS, b=PIXELS, y=Y)
    source = open_source(entry(tmp_path / "two.npz", ["a", "b"]))
    to = Several(tuple(Part(name, name, "pixels", (3, SIDE, SIDE), TO) for name in "ab"))
    for spec, same in (("crop-flip", True), ("noise", False)):
        plan = open_view(spec, source.scale, None, arrays_of(source)).plan(0, 0, 1, COUNT)
        a, b = np.split(plan.x([source.item(1)], to), 2)
        assert np.array_equal(a, b) == same
        if not same:
            assert abs(np.corrcoef(a - plain_input(source.item(1), to)[: len(a)], b - a)[0, 1]) < 0.99


def test_two_rows_are_mixed_by_one_weight(tmp_path: Path) -> None:
    source = of_archive(tmp_path)
    plan = open_view("mixup", None, None, arrays_of(source)).plan(0, 1, 3, COUNT)
    found, y = viewed(source, "mixup")
    own, partner = plan.rows
    assert (own, y[:2]) == (3, (Y[3], Y[partner]))
    assert_allclose(found["x"], y[2] * NUMBERS[3] + (1 - y[2]) * NUMBERS[partner], rtol=1e-5)
    pixels = y[2] * PIXELS[3].astype(float) + (1 - y[2]) * PIXELS[partner]
    assert_allclose(found["pixel_values"], (pixels / 255 - 0.5).transpose(2, 0, 1) / 0.25, atol=1e-4)


def test_columns_are_swapped_whole_and_pictures_left(tmp_path: Path) -> None:
    source = of_table(tmp_path)
    plan = open_view("swap", None, source.groups, arrays_of(source)).plan(0, 1, 3, COUNT)  # type: ignore[attr-defined]
    found, _ = viewed(source, "swap")
    assert_array_equal(
        found["pixel_values"], plain_input(source.item(3), BOTH)[: 3 * SIDE * SIDE].reshape(3, SIDE, SIDE)
    )
    age, *sex = found["x"]
    partner = plan.rows[1]
    assert age in (apart(source.item(3))["x"].x[0], apart(source.item(partner))["x"].x[0])
    assert any(np.array_equal(sex, NUMBERS[row, 1:]) for row in (3, partner))


def test_lists_beside_the_numbers_of_a_table_are_mixed_by_their_own_length(tmp_path: Path) -> None:
    rows = [{"age": at, "sex": "fm"[at % 2], "beat": [at, -at, at, 0.5, 1.5]} for at in range(COUNT)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = Columns(("age", "sex"), {"sex": ("f", "m")}, encoding="index", array="beat")
    source: Any = open_source(tmp_path / "a.jsonl", columns=columns)
    for spec in ("swap", "mixup"):
        plan: Any = open_view(spec, None, source.groups, arrays_of(source), columns.places).plan(0, 1, 3, COUNT)
        items = [source.item(row) for row in plan.rows]
        parts = {name: one.x([apart(item)[name] for item in items], None) for name, one in plan.plans.items()}
        assert (parts["array"].shape, parts["x"].shape) == ((5,), (2,))
        assert parts["x"][1] in (0, 1)


def test_numbers_move_by_their_own_unit_and_categories_do_not(tmp_path: Path) -> None:
    source = of_table(tmp_path)
    moved = np.array([viewed(source, "noise", 3, view)[0]["x"] - apart(source.item(3))["x"].x for view in range(200)])
    assert_allclose(moved[:, 0].std(), 0.1 * NUMBERS[:, 0].std(), rtol=0.2)
    assert_array_equal(moved[:, 1:], 0)


@pytest.mark.parametrize("spec", ["token-dropout", "ods", "crop-flip+confods"])
def test_a_view_that_knows_none_of_them_is_refused_by_its_name(tmp_path: Path, spec: str) -> None:
    source = of_archive(tmp_path)
    with refused(spec.rpartition("+")[2], "pixel_values (pixels) and x (features 3)", "crop-flip"):
        open_view(spec, source.scale, None, arrays_of(source))


def test_views_do_not_depend_on_who_asks_first(tmp_path: Path) -> None:
    source = of_archive(tmp_path)
    view = open_view("crop-flip+mixup+noise", source.scale, None, arrays_of(source))
    first = view.plan(0, 1, 3, COUNT)
    again = copy.deepcopy(view).plan(0, 1, 3, COUNT)
    items = [source.item(row) for row in first.rows]
    assert first.rows == again.rows
    assert_array_equal(first.x(items, BOTH), again.x(items, BOTH))
    assert not np.array_equal(first.x(items, BOTH), view.plan(0, 2, 3, COUNT).x(items, BOTH))


def test_predict_takes_the_arrays_that_a_student_names(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "rows.npz", COUNT, extra=NUMBERS)
    source = open_inputs([str(path)], arrays=["x", "pixel_values"], model="model.onnx")
    assert list(apart(source.item(0))) == ["x", "pixel_values"]
    with refused("no array 'ages'", "model.onnx was trained on it"):
        open_inputs([str(path)], arrays=["x", "ages"], model="model.onnx")
