"""What messages about data ask for is done literally, and then the data opens."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import refused

from ensemble_distill.data import open_inputs, open_source
from ensemble_distill.errors import EdistillError
from ensemble_distill.tasks.checks.class_order import order_by_names
from ensemble_distill.tasks.checks.labels import as_classes

X = np.arange(4 * 3 * 6 * 5, dtype=np.uint8).reshape(4, 3, 6, 5)


def said_of(entry: Any, task: str = "classification") -> str:
    with pytest.raises(EdistillError) as told:
        open_source(entry, task)
    return str(told.value)


@pytest.mark.parametrize(
    ("y", "code"),
    [
        (np.array(["dog", "cat", "dog", "emu"]), "numpy.unique(y, return_inverse=True)"),
        (np.array([1.0, 0.0, 1.0, 2.0]), "y.astype('int64')"),
    ],
)
def test_labels_become_whole_numbers_as_the_message_says(y: Any, code: str, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    pixels = np.moveaxis(X, -3, -1)
    np.savez(file, x=pixels, y=y)
    assert code in said_of(file)
    made = eval(code, {"numpy": np, "y": y})
    classes, y = made if isinstance(made, tuple) else (None, made)
    np.savez(file, x=pixels, y=y, **({} if classes is None else {"classes": classes}))
    assert_array_equal(open_source(file).labels, [1, 0, 1, 2])  # type: ignore[arg-type]


def test_labels_that_are_no_classes_are_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=[0.5, 1, 2, 3])
    text = said_of(tmp_path / "a.npz")
    assert 'set task = "regression"' in text
    assert "int64" not in text  # which would cut the halves off
    assert open_source(tmp_path / "a.npz", "regression").labels is not None


ROWS = """
import numpy
from pathlib import Path
x_all = numpy.load(Path(__file__).parent / "x.npy")
class Rows:
    def __len__(self): return len(x_all)
    def __getitem__(self, row):
        x = x_all[row]
        return CODE, row % 2
def make(): return Rows()
"""


def test_channels_go_last_in_arrays_and_in_the_rows_of_a_dataset(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "a.npz", x=X)
    (tmp_path / "first.py").write_text(ROWS.replace("CODE", "x"))
    code = "numpy.moveaxis(x, -3, -1)"
    for entry in (tmp_path / "a.npz", f"{tmp_path}/first.py:make"):
        assert code in said_of(entry)
    np.savez(tmp_path / "a.npz", x=eval(code, {"numpy": np, "x": X}))
    (tmp_path / "last.py").write_text(ROWS.replace("CODE", code))
    for entry in (tmp_path / "a.npz", f"{tmp_path}/last.py:make"):
        assert open_source(entry).item(0).x.shape == (6, 5, 3)


def test_a_table_of_arrays_becomes_the_one_that_the_message_shows(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.moveaxis(X, -3, -1))
    (tmp_path / "table.py").write_text(ROWS.replace("CODE, row % 2", "{'image': x, 'label': row % 2}"))
    text = said_of(f"{tmp_path}/table.py:make")
    assert "(x, row['label'])" in text
    (tmp_path / "image.py").write_text(ROWS.replace("CODE, row % 2", "(x, {'label': row % 2}['label'])"))
    assert len(open_source(f"{tmp_path}/image.py:make")) == 4


def test_an_entry_that_a_message_shows_is_toml_that_opens(tmp_path: Path) -> None:
    file = tmp_path / "some data.npz"
    np.savez(file, x=np.moveaxis(X, -3, -1), labels=[0, 1, 0, 1])
    (remark,) = open_source(file).remarks
    entry = tomllib.loads("entry = " + remark.partition("name them: ")[2].rstrip("."))["entry"]
    assert_array_equal(open_source(SimpleNamespace(rows=None, **{"x": "x", **entry})).labels, [0, 1, 0, 1])  # type: ignore[arg-type]
    np.savez(file, train_x=np.moveaxis(X, -3, -1), train_y=[0, 1, 0, 1])
    shown = said_of(file).partition("right ones: ")[2].rstrip(".")
    written = shown.replace("x = ...", 'x = "train_x"').replace("y = ...", 'y = "train_y"')
    entry = tomllib.loads(f"entry = {written}")["entry"]
    assert len(open_source(SimpleNamespace(rows=None, **entry))) == 4


def test_a_folder_that_is_called_as_an_image_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png/b.png")
    assert open_inputs([str(tmp_path / "a.png")]).name(0) == "b.png"
    with refused("There is no"):
        open_inputs([str(tmp_path / "c.png")])


@pytest.mark.parametrize("ask", [lambda n: as_classes(n, "here"), lambda n: order_by_names("m", n[::-1], n, "there")])
def test_of_very_many_names_each_is_looked_up_and_not_searched(ask: Callable[[list[str]], Any]) -> None:
    class Name(str):
        """Counts how often it is compared."""

        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, other)

    Name.compared = 0
    ask([Name(f"class {index}") for index in range(2000)])
    assert Name.compared < 30 * 2000
