"""Records: how far decoded logits are from the members' own, and what that does to model uncertainty."""

import io
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from ensemble_distill.cache.formats import _FORMATS, Format
from ensemble_distill.cache.formats.dense import LOWEST

Logits = NDArray[np.float32]
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
ORDINARY = hnp.arrays(np.float32, SHAPES, elements=st.floats(-1e4, 1e4, width=32))
ANY = hnp.arrays(np.float32, SHAPES, elements=st.floats(allow_nan=False, allow_infinity=False, width=32))


def as_records(logits: NDArray[np.float32], dtype: str) -> NDArray[np.void]:
    return Format("dense", (logits.shape[1],), dtype).encode(logits)


def there_and_back(logits: Logits, dtype: str) -> Logits:
    return Format("dense", (logits.shape[1],), dtype).decode(as_records(logits, dtype))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def model_uncertainty(logits: Logits) -> NDArray[np.float64]:
    """(N,) mutual information of (N, M, K), in float64."""
    log_p = log_softmax(logits.astype(np.float64))
    p = np.exp(log_p)
    return (p * (log_p - np.log(p.mean(1, keepdims=True)))).sum(-1).mean(1)


# --- bounds -----------------------------------------------------------------------------------------------------


@given(ORDINARY)
def test_float16_is_off_by_half_a_step_below_the_maximum(logits: Logits) -> None:
    exact = logits.astype(np.float64)
    below = exact.max(1, keepdims=True) - exact
    # half a unit in the last of 11 bits, the least subnormal of float16, and the roundings of both float32 steps
    bound = below * 2.0**-11 + 2.0**-24 + np.abs(exact).max() * 2.0**-22
    assert (np.abs(there_and_back(logits, "float16") - exact) <= bound).all()


@given(ORDINARY)
def test_the_maximum_itself_is_exact(logits: Logits) -> None:
    assert_array_equal(there_and_back(logits, "float16").max(1), logits.max(1))


@given(ANY)
def test_float32_is_exact_whatever_the_values(logits: Logits) -> None:
    assert_array_equal(there_and_back(logits, "float32"), logits)


@given(ANY)
def test_extremes_stay_finite_and_in_order(logits: Logits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = as_records(logits, "float16")
    assert np.isfinite(records["logits"]).all()
    assert records["logits"].max() == 0
    below = records["logits"].astype(np.float64)
    order = np.argsort(logits, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(below, order, 1), axis=1) >= 0).all()


def test_what_float16_cannot_hold_is_as_good_as_impossible() -> None:
    largest = np.finfo(np.float32).max
    records = as_records(np.array([[largest, -largest, 0], [0, -1e6, -65504]], np.float32), "float16")
    assert_array_equal(records["logits"], np.array([[0, LOWEST, LOWEST], [0, LOWEST, LOWEST]], np.float16))
    assert_array_equal(records["max"], np.array([largest, 0], np.float32))


def test_a_shift_of_all_logits_is_only_in_the_maximum() -> None:
    logits = np.random.default_rng(0).integers(-20, 20, (50, 7)).astype(np.float32)
    near, far = as_records(logits, "float16"), as_records(logits + 4096, "float16")
    assert_array_equal(near["logits"], far["logits"])
    assert_array_equal(near["max"] + 4096, far["max"])


# --- model uncertainty ------------------------------------------------------------------------------------------


def ensemble(classes: int, sharpness: float, spread: float, offset: float) -> Logits:
    """(N, M, K) of members that agree on `sharpness` and differ by `spread`, each with an offset of its own."""
    rng = np.random.default_rng(classes)
    shared = rng.normal(scale=sharpness, size=(200, 1, classes))
    own = rng.normal(scale=spread, size=(200, 8, classes))
    return (shared + own + offset * rng.normal(size=(1, 8, 1))).astype(np.float32)


def test_model_uncertainty_is_off_by_less_than_a_thousandth() -> None:
    for offset in [0, 50]:
        for sharpness, spread in [(1, 1), (5, 1), (5, 0.3), (2, 0.1)]:
            for classes in [2, 10, 100]:
                logits = ensemble(classes, sharpness, spread, offset)
                exact = model_uncertainty(logits)
                stored = model_uncertainty(there_and_back(logits.reshape(-1, classes), "float16").reshape(logits.shape))
                assert abs(stored.mean() / exact.mean() - 1) < 1e-3
                assert np.abs(stored - exact).sum() / exact.sum() < 5e-3


def test_without_the_maximum_subtracted_it_would_be_off_by_more() -> None:
    logits = ensemble(10, 5, 0.1, 50)
    exact = model_uncertainty(logits).mean()
    plain = abs(model_uncertainty(logits.astype(np.float16).astype(np.float32)).mean() / exact - 1)
    stored = abs(
        model_uncertainty(there_and_back(logits.reshape(-1, 10), "float16").reshape(logits.shape)).mean() / exact - 1
    )
    assert plain > 20 * stored


# --- form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "size"), [("float16", 4 + 2 * 10), ("float32", 4 + 4 * 10)])
def test_a_record_has_a_fixed_width_without_padding(dtype: str, size: int) -> None:
    record = Format("dense", (10,), dtype).record
    assert record.itemsize == size
    assert record["logits"].shape == (10,)


def test_records_are_little_endian_on_any_machine() -> None:
    file = io.BytesIO()
    np.save(file, as_records(np.zeros((1, 2), np.float32), "float16"))
    assert b"'<f4'" in file.getvalue()
    assert b"'<f2'" in file.getvalue()


SHAPE = {"dense": (3,), "moments": (2,), "inputs": (1, 4, 4), "sampled": (2, 4), "drawn": (2, 5)}
DTYPES = {"inputs": ("uint8", "float32"), "drawn": ("uint16", "uint32")}
STORED = [(name, dtype) for name in _FORMATS.keys for dtype in DTYPES.get(name, ("float16", "float32"))]


@pytest.mark.parametrize(("name", "dtype"), STORED)
def test_a_format_gives_back_what_it_was_given(name: str, dtype: str) -> None:
    """Whatever formats there are: fixed width, rows apart from each other, and what is decoded encodes to the same."""
    form = Format(name, SHAPE[name], dtype)
    values = np.random.default_rng(0).uniform(0, 1, (5, *SHAPE[name])).astype(np.float32)
    if name == "drawn":
        values[..., :2] = [7, 3]  # ids
    records = form.encode(values)
    decoded = form.decode(records)
    assert (records.dtype, records.shape) == (form.record, (5,))
    assert (decoded.dtype, decoded.shape) == (np.float32, values.shape)
    assert np.abs(decoded - values).max() <= (0.5 / 255 + 1e-7 if dtype == "uint8" else 1e-3)
    assert_array_equal(form.encode(decoded), records)
    assert_array_equal(form.decode(records[[3, 1]]), decoded[[3, 1]])
    assert pickle.loads(pickle.dumps(form)) == form
