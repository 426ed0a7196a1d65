"""Arrays: which dtypes and shapes are which kind, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ensemble_distill.data import open_source
from ensemble_distill.errors import EdistillError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
TENSOR = RNG.normal(size=(4, 3, 6, 5))
FEATURES = RNG.normal(size=(4, 7))


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    def save(**arrays: Any) -> str:
        np.savez(tmp_path / "a.npz", **arrays)
        return str(tmp_path / "a.npz")

    return save


@pytest.mark.parametrize(
    ("x", "kind", "held"),
    [
        (GRAY, "pixels", GRAY[..., None]),
        (COLOR, "pixels", COLOR),
        (TENSOR, "tensor", TENSOR.astype(np.float32)),
        (TENSOR.astype(">f4"), "tensor", TENSOR.astype(np.float32)),
        (FEATURES, "features", FEATURES.astype(np.float32)),
        (FEATURES.astype(np.float16), "features", FEATURES.astype(np.float16).astype(np.float32)),
    ],
)
def test_kinds(saved: Any, x: Any, kind: str, held: Any) -> None:
    source = open_source(saved(x=x, y=np.array([1, 0, 2, 1], dtype=np.uint8)))
    assert (len(source), source.kind, source.classes, source.name(2)) == (4, kind, None, "row 2")
    for row in range(4):
        item = source.item(row)
        assert item.kind == kind
        assert item.x.dtype == held.dtype
        assert_array_equal(item.x, held[row])
    assert source.item(2).y == 2
    assert source.labels is not None
    assert source.labels.dtype == np.int64


def test_labels_and_names_are_optional(saved: Any) -> None:
    bare = open_source(saved(x=GRAY))
    assert (bare.labels, bare.item(0).y) == (None, None)
    named = open_source(saved(x=GRAY, y=[0, 1, 1, 0], classes=["cat", "dog"]))
    assert named.classes == ("cat", "dog")


def test_arrays_go_by_the_names_in_the_entry(saved: Any) -> None:
    file = saved(train_x=GRAY, train_y=[0, 1, 2, 3], val_x=GRAY[:2])
    source = open_source(SimpleNamespace(source=file, rows=None, x="train_x", y="train_y"))
    assert_array_equal(source.labels, [0, 1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(EdistillError, match="no array 'x'; it holds train_x, train_y, val_x"):
        open_source(file)
    with pytest.raises(EdistillError, match="no array 'val_y'; it holds train_x, train_y, val_x"):
        open_source(SimpleNamespace(source=file, rows=None, x="val_x", y="val_y"))


def test_scale_is_each_columns_deviation_and_0_for_a_constant(saved: Any) -> None:
    x = RNG.normal(size=(1000, 3)) * [1, 50, 0] + [5, -2, 0.1]
    scale = open_source(saved(x=x)).scale
    assert scale is not None
    assert scale.dtype == np.float32
    assert_allclose(scale, [x[:, 0].std(), x[:, 1].std(), 0], rtol=1e-5)
    assert open_source(saved(x=GRAY)).scale is None


def test_regression_targets_are_float32(saved: Any) -> None:
    source = open_source(saved(x=FEATURES, y=[1, 2, 3, 4]), "regression")
    assert source.labels is not None
    assert source.labels.dtype == np.float32
    assert source.item(3).y == 4.0


def with_value(x: Any, index: tuple[int, ...], value: float) -> Any:
    x = x.copy()
    x[index] = value
    return x


def test_refusals(saved: Any) -> None:
    for arrays, message in [
        (
            {"x": FEATURES.astype(np.int64)},
            r"x holds int64 of shape \(7,\) per row\. Accepted are uint8 pixels",
        ),
        ({"x": GRAY.astype(np.int16)}, r"int16 of shape \(6, 5\)"),
        ({"x": GRAY.astype(np.float32)[:, None, None, None]}, r"float32 of shape \(1, 1, 1, 6, 5\)"),
        ({"x": GRAY[:, 0]}, r"uint8 of shape \(5,\)"),
        ({"x": GRAY[:, :0]}, "which is empty"),
        ({"x": FEATURES[:, :0]}, r"float64 of shape \(0,\)"),
        (
            {"x": COLOR.transpose(0, 3, 1, 2)},
            r"shape \(3, 6, 5\) per row: 5 channels\. Put the channels last",
        ),
        ({"x": np.array(["a", "b"])}, r"x holds <U1 of shape \(\) per row"),
        ({"x": np.float32(3)}, r"x has shape \(\), so no rows"),
        ({"x": GRAY[:0]}, r"x has shape \(0, 6, 5\), so no rows"),
        ({"x": np.array([{}, {}])}, "x is an array of Python objects"),
        ({"x": with_value(FEATURES, (2, 1), np.nan)}, r"x is nan at \(1,\) of row 2"),
        ({"x": with_value(TENSOR, (3, 0, 5, 4), -np.inf)}, r"x is -inf at \(0, 5, 4\) of row 3"),
        ({"x": with_value(FEATURES, (1, 0), 1e300)}, r"x is inf at \(0,\) of row 1, as float32"),
        ({"x": GRAY, "y": [0, 1, 2]}, r"y has shape \(3,\) for 4 rows"),
        ({"x": GRAY, "y": np.eye(4)}, r"y has shape \(4, 4\) for 4 rows"),
        ({"x": GRAY, "y": [0.0, 1.0, 2.0, 3.0]}, r"y is float64\. Classes are whole numbers"),
        ({"x": GRAY, "y": [0, -1, 2, 3]}, "y is negative: -1 at row 1"),
        ({"x": GRAY, "y": [0, 1, 2, 1], "classes": ["a", "b"]}, "no name among the 2 classes: 2 at row 2"),
        ({"x": GRAY, "classes": ["a", "b", "a"]}, "classes names 'a' twice"),
        ({"x": GRAY, "classes": [1, 2]}, r"classes is int64 of shape \(2,\)"),
    ]:
        with pytest.raises(EdistillError, match=message):
            open_source(saved(**arrays))


def test_refused_targets(saved: Any) -> None:
    for y, message in [
        ([1.0, np.nan, 3.0, 4.0], "y is not finite: nan at row 1"),
        (["a", "b", "c", "d"], r"y is <U1\. Targets of regression are numbers"),
    ]:
        with pytest.raises(EdistillError, match=message):
            open_source(saved(x=FEATURES, y=y), "regression")


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    for content in [b"", b"PK\x03\x04 cut short", b"text"]:
        file = tmp_path / "a.npz"
        file.write_bytes(content)
        with pytest.raises(EdistillError, match=r"a\.npz cannot be read as \.npz"):
            open_source(file)
        with file.open("wb") as single:
            np.save(single, GRAY)
        with pytest.raises(EdistillError, match="it is a single array"):
            open_source(file)


def test_mnist() -> None:
    file = Path(__file__).parents[2].parent / "shared" / "data" / "mnist.npz"
    if not file.is_file():
        pytest.skip("shared/data/mnist.npz is not here")
    source = open_source(SimpleNamespace(source=str(file), rows=None, x="test_x", y="test_y"))
    assert (len(source), source.kind, source.item(0).x.shape) == (10_000, "pixels", (28, 28, 1))
    assert source.labels is not None
    assert_array_equal(np.unique(source.labels), range(10))
