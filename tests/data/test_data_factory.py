"""User factories: loading them, what their datasets may return, and what is refused."""

import pickle
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ensemble_distill.data import open_source
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.factories import load_factory

DATASET = """
import numpy as np
class Rows:
    def __init__(self, rows, **more):
        self.rows = rows
        self.__dict__.update(more)
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, row):
        return self.rows[row]
"""


@pytest.fixture
def factory(tmp_path: Path) -> Any:
    def write(body: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(DATASET + dedent(body))
        return f"{tmp_path / name}:make"

    return write


def returning(expression: str) -> str:
    return f"def make():\n    from PIL import Image\n    return {expression}\n"


# --- loading ----------------------------------------------------------------------------------------------


def test_a_file_is_imported_once_with_its_folder_importable(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 3\n")
    (tmp_path / "late_helper.py").write_text("VALUE = 4\n")
    (tmp_path / "mine.py").write_text(
        "from helper_of_mine import VALUE\nSEEN = []\n"
        "def make(more=0):\n    import late_helper\n    SEEN.append(more)\n"
        "    return SEEN, VALUE + late_helper.VALUE\n"
    )
    path = list(sys.path)
    make = load_factory(f"{tmp_path}/mine.py:make", "teachers.model")
    assert make(more=1) == ([1], 7)
    again = load_factory(f"{tmp_path}/../{tmp_path.name}/mine.py:make", "teachers.model")
    assert again(2) == ([1, 2], 7), "a second load saw a second module"
    assert sys.path == path


def test_relative_files_start_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    return 5\n")
    monkeypatch.chdir(tmp_path)
    assert load_factory("mine.py:make", "x")() == 5


def test_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def make():\n    return {name!r}\n")
    assert [load_factory(f"{tmp_path}/{name}/mine.py:make", "x")() for name in "ab"] == ["a", "b"]


def test_packages() -> None:
    assert load_factory("collections:Counter", "x")("aab") == {"a": 2, "b": 1}
    assert load_factory("os.path:join", "x")("a", "b")


def test_refused_specs() -> None:
    for spec, message in [
        ("mine.py", "w is 'mine.py'. Write file.py:factory"),
        (":make", "Write file.py:factory"),
        ("mine.py:", "Write file.py:factory"),
        ("nowhere.py:make", r"there is no file .*nowhere\.py"),
        (
            "no_such_package.models:make",
            r"No module named 'no_such_package'\. If it is a file, write no_such_pac",
        ),
        ("os.path:maker", "os.path has no callable maker"),
        ("os:sep", "os has no callable sep"),
    ]:
        with pytest.raises(EdistillError, match=message):
            load_factory(spec, "w")


def test_failures_name_the_spec_and_chain_the_cause(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(EdistillError, match=r"importing .*bad\.py raised ZeroDivisionError: division by") as caught:
        load_factory(f"{tmp_path}/bad.py:make", "w")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    (tmp_path / "mine.py").write_text(
        "class Net: ...\ndef make(depth):\n    raise KeyError('weights')\ndef clear():\n"
        "    from ensemble_distill.errors import EdistillError\n    raise EdistillError('as it is')\n"
    )
    with pytest.raises(EdistillError, match=r"no callable build\. It defines Net, make, clear\."):
        load_factory(f"{tmp_path}/mine.py:build", "w")
    with pytest.raises(EdistillError, match=r"make\(depth=3\) raised KeyError: 'weights'") as caught:
        load_factory(f"{tmp_path}/mine.py:make", "w")(depth=3)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(EdistillError, match=r"^as it is$"):
        load_factory(f"{tmp_path}/mine.py:clear", "w")()


# --- datasets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "kind", "shape"),
    [
        ("np.full((6, 5), 7, np.uint8)", "pixels", (6, 5, 1)),
        ("np.full((6, 5, 3), 7, np.uint8)", "pixels", (6, 5, 3)),
        ("Image.new('L', (5, 6), 7)", "pixels", (6, 5, 1)),
        ("Image.new('RGB', (5, 6), (7, 7, 7))", "pixels", (6, 5, 3)),
        ("Image.new('RGBA', (5, 6), (7, 7, 7, 255))", "pixels", (6, 5, 3)),
        ("np.full((3, 6, 5), 7.0)", "tensor", (3, 6, 5)),
        ("np.full(4, 7.0)", "features", (4,)),
        ("{'x': np.full(4, 7.0)}", "features", (4,)),
        ("Image.fromarray(np.full((6, 5), 7 * 257, np.uint16))", "pixels", (6, 5, 1)),
        ("[7.0, 7.0]", None, None),
    ],
)
def test_what_x_may_be(factory: Any, x: str, kind: str | None, shape: tuple[int, ...] | None) -> None:
    spec = factory(returning(f"Rows([({x}, 1), ({x}, 0)])"))
    if kind is None:
        with pytest.raises(EdistillError, match=r"x of row 0 is a list of 2\. Return \(x, y\), or x"):
            open_source(spec)
        return
    source = open_source(spec)
    item = source.item(1)
    assert (source.kind, item.kind, item.x.shape, item.y) == (kind, kind, shape, 0)
    assert item.x.dtype == (np.uint8 if kind == "pixels" else np.float32)
    assert (item.x == 7).all()
    assert_array_equal(source.labels, [1, 0])  # type: ignore[arg-type]


def test_torch_datasets(factory: Any) -> None:
    import torch

    source = open_source(
        factory("""
            import torch
            from torch.utils.data import Subset, TensorDataset
            def make():
                x = torch.arange(12.0, requires_grad=True).reshape(4, 3)
                return Subset(TensorDataset(x, torch.tensor([0, 1, 2, 1])), [3, 1])
        """)
    )
    assert (source.kind, len(source)) == ("features", 2)
    assert_array_equal(source.item(0).x, torch.arange(9.0, 12.0))
    assert_array_equal(source.labels, [1, 1])  # type: ignore[arg-type]
    assert source.labels is not None
    assert source.labels.dtype == np.int64


def test_x_alone_has_no_labels_and_targets_give_them(factory: Any) -> None:
    bare = open_source(factory(returning("Rows([np.zeros(2)] * 3)")))
    assert (bare.labels, bare.item(0).y) == (None, None)
    named = open_source(
        factory(returning("Rows([np.zeros(2)] * 3, targets=[1, 0, 1], classes=['a', 'b'])"), "named.py")
    )
    assert (named.classes, named.item(1).y) == (("a", "b"), 0)
    assert_array_equal(named.labels, [1, 0, 1])  # type: ignore[arg-type]


def test_rows_are_read_once_for_labels_when_there_are_no_targets(factory: Any) -> None:
    spec = factory("""
        READ = []
        class Noting(Rows):
            def __getitem__(self, row):
                READ.append(row)
                return self.rows[row]
        def make():
            return Noting([(np.zeros(2), row) for row in range(9)])
        def read():
            return READ
    """)
    source = open_source(spec)
    read = load_factory(spec.replace(":make", ":read"), "x")()
    opened = len(read)
    assert 8 not in read, "opening read rows it did not need"
    assert_array_equal(source.labels, range(9))  # type: ignore[arg-type]
    assert source.item(8).y == 8
    assert sorted(read[opened:]) == list(range(9))


def test_a_reused_buffer_does_not_change_earlier_items(factory: Any) -> None:
    spec = factory("""
        class Reusing(Rows):
            buffer = np.zeros(2, np.float32)
            def __getitem__(self, row):
                self.buffer[:] = row
                return self.buffer
        def make():
            return Reusing(range(6), classes=np.array(["a", "b"]))
    """)
    source = open_source(spec)
    items = [source.item(row) for row in range(6)]
    assert [int(item.x[0]) for item in items] == list(range(6))
    assert source.classes == ("a", "b")


def test_regression_and_scale(factory: Any) -> None:
    spec = factory(returning("Rows([(np.array([row, 5.0]), row / 2) for row in range(10)])"))
    source = open_source(spec, "regression")
    assert_allclose(source.labels, np.arange(10) / 2)  # type: ignore[arg-type]
    assert_allclose(source.scale, [np.arange(10).std(), 0], rtol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(EdistillError, match=r"y is float64\. Classes are whole numbers"):
        open_source(spec)


def test_a_copy_for_another_process_reloads_the_file(factory: Any) -> None:
    source = open_source(factory(returning("Rows([(np.full(2, 3.0), 1)])")))
    copy = pickle.loads(pickle.dumps(source))
    assert_array_equal(copy.item(0).x, [3, 3])
    assert copy.digest == source.digest


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("iter([1])", "returned a list_iterator. Return an object with __len__"),
        ("Rows([])", "Rows without rows"),
        ("Rows([(np.zeros(2), 1, 2)])", r"row 0 is a tuple of 3\. Return \(x, y\), or x"),
        (
            "Rows([{'picture': np.zeros(2), 'label': np.zeros(2)}])",
            r"row 0 is a table of picture, label\. .*\(x, row\['label'\]\)",
        ),
        ("Rows([({'a': np.zeros(2), 3: 1}, 0)])", r"an array '3', which is not a name"),
        ("Rows([(np.zeros(2, int), 1)])", r"x holds int64 of shape \(2,\) per row"),
        ("Rows([('text', 1)])", "x holds <U4"),
        ("Rows([(np.zeros((3, 6, 5), np.uint8), 1)])", "5 channels. Put the channels last"),
        ("Rows([(np.zeros(2), 0), (np.array([0, np.nan]), 0)])", r"x is nan at \(1,\) of row 1"),
        (
            "Rows([(np.zeros(2), 0), (np.zeros(3), 0)])",
            r"row 1 is features of shape \(3,\), but row 0 .*\(2,\)",
        ),
        ("Rows([(np.zeros(2), 0), (np.zeros((2, 2), np.uint8), 0)])", "row 1 is pixels .*row 0 is features"),
        ("Rows([(np.zeros(2), -1)])", "y is negative: -1 at row 0"),
        ("Rows([(np.zeros(2), 0), (np.zeros(2), 2)], classes=['a', 'b'])", "2 classes: 2 at row 1"),
        ("Rows([np.zeros(2), (np.ones(2), 1)])", "row 1 has y 1, but row 0 has none"),
        ("Rows([(np.zeros(2), [0, 1])])", r"y of row 0 has shape \(2,\)\. Return one number"),
        ("Rows([(np.zeros(2), 0)], targets=[0, 1])", r"\.targets has shape \(2,\) for 1 rows"),
        ("Rows([(np.zeros(2), 0)], targets=[[0], [1, 2]])", r"\.targets is a list that makes no array"),
        ("Rows([(np.zeros(2), 0)], targets=[1])", r"y of row 0 is 0, but \.targets says 1"),
        ("Rows([(np.zeros(2), 0)], classes=['a', 'a'])", r"\.classes names 'a' twice"),
    ],
)
def test_refused_datasets(factory: Any, made: str, message: str) -> None:
    with pytest.raises(EdistillError, match=message):
        open_source(factory(returning(made)))


def test_a_dataset_that_augments_is_refused(factory: Any) -> None:
    spec = factory("""
        class Shaky(Rows):
            def __getitem__(self, row):
                self.calls = getattr(self, "calls", 0) + 1
                return self.rows[row] + self.calls, 0
        def make():
            return Shaky(np.zeros((3, 2)))
    """)
    with pytest.raises(EdistillError, match="gives another x each time row 0 is read"):
        open_source(spec)


def test_a_row_that_cannot_be_read_is_named(factory: Any) -> None:
    spec = factory("""
        class Gap(Rows):
            def __getitem__(self, row):
                if row == 6:
                    raise FileNotFoundError("six.jpg")
                return self.rows[row]
        def make():
            return Gap(np.zeros((8, 2)))
    """)
    source = open_source(spec)
    assert source.item(7).x.shape == (2,)
    with pytest.raises(EdistillError, match=r"mine\.py:make: reading row 6 raised FileNotFoundError: six\.jpg"):
        source.item(6)
