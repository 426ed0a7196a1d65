"""Rendering: timm's evaluation transform is the oracle for undistorted pixels."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from ensemble_distill.data.rendering import as_unit, normalize, render
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import CROP_MODES, INTERPOLATIONS, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = tuple(map(int, timm.__version__.split(".")[:3]))


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng([height, width, channels])
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def timms(image: Image.Image, to: Preprocessing) -> np.ndarray:
    from timm.data.transforms_factory import transforms_imagenet_eval

    transform = transforms_imagenet_eval(
        img_size=to.size, crop_pct=to.crop_pct, crop_mode=to.crop_mode, interpolation=to.interpolation,
        mean=to.mean, std=to.std,
    )  # fmt: skip
    return transform(image).numpy()


@pytest.mark.parametrize(("mode", "interpolation"), list(itertools.product(CROP_MODES, INTERPOLATIONS)))
def test_equals_timm(mode: str, interpolation: str) -> None:
    sizes, shapes = [(32, 32), (24, 40)], [(32, 32), (57, 41), (20, 63), (300, 9), (24, 40)]
    if mode == "center" and interpolation != "bilinear" and TIMM < (1, 0, 31):
        sizes.pop()  # those versions scale to an oblong size by bilinear, whatever is asked
    for crop_pct, size, shape in itertools.product([1.0, 0.875, 0.73], sizes, shapes):
        to = Preprocessing(size, MEAN, STD, interpolation, crop_pct, mode)
        x = pixels(*shape)
        ours = normalize(render(x, to), to)
        assert (ours.dtype, ours.shape) == (np.float32, (3, *size))
        assert_allclose(ours, timms(Image.fromarray(x), to), rtol=0, atol=2e-6, err_msg=f"{to} {shape}")


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    crop_pct=st.floats(0.5, 1.0),
    mode=st.sampled_from(CROP_MODES),
)
def test_equals_timm_for_any_size(shape: tuple[int, int], size: tuple[int, int], crop_pct: float, mode: str) -> None:
    to = Preprocessing(size, MEAN, STD, "bilinear", crop_pct, mode)
    x = pixels(*shape)
    try:
        theirs = timms(Image.fromarray(x), to)
    except ValueError:  # an edge of 0 pixels, which Pillow refuses; ours keeps at least one
        assert render(x, to).shape == (3, *size)
        return
    assert_allclose(normalize(render(x, to), to), theirs, rtol=0, atol=2e-6)


def test_gray_pixels_equal_timm_on_one_channel_and_on_three() -> None:
    for mode in CROP_MODES:
        x = pixels(28, 21, 1)
        gray = Image.fromarray(x[..., 0])
        one = Preprocessing((32, 32), (0.13,), (0.31,), "bicubic", 0.9, mode)
        assert_allclose(normalize(render(x, one), one), timms(gray, one), atol=2e-6)
        three = replace(one, mean=MEAN, std=STD)
        assert_allclose(normalize(render(x, three), three), timms(gray.convert("RGB"), three), atol=2e-6)


def test_one_mean_serves_all_channels() -> None:
    for mode in CROP_MODES:
        x = pixels(30, 20)
        one = Preprocessing((16, 24), (0.4,), (0.3,), crop_mode=mode)
        three = replace(one, mean=(0.4,) * 3, std=(0.3,) * 3)
        assert_array_equal(normalize(render(x, one), one), normalize(render(x, three), three))
        mixed = replace(one, std=(0.3,) * 3)
        assert_array_equal(normalize(render(x, mixed), mixed), normalize(render(x, three), three))


def test_many_channels_are_resized_one_by_one() -> None:
    x = pixels(30, 20, 5)
    to = Preprocessing((16, 16), (0.0,) * 5, (1.0,) * 5, "bicubic")
    single = replace(to, mean=(0.0,), std=(1.0,))
    expected = np.concatenate([render(x[..., c : c + 1], single) for c in range(5)])
    assert_array_equal(render(x, to), expected)


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EdistillError, match=r"images have 4 channels, but preprocessing\.mean or std has 3"):
        render(pixels(8, 8, 4), Preprocessing((8, 8), MEAN, STD))


def test_floats_go_through_the_same_filters() -> None:
    """Bytes as floats render within the two roundings to 8 bits of Pillow's own path, one a pass.

    Mid grays, because that path also clamps between its passes where bicubic and Lanczos overshoot.
    """
    for mode, interpolation in list(itertools.product(CROP_MODES, INTERPOLATIONS)):
        to = Preprocessing((20, 28), MEAN, STD, interpolation, 0.9, mode)
        for shape in ((33, 47, 1), (33, 47, 3), (20, 80, 3)):
            x = pixels(*shape) // 2 + 64
            floats, bytes_ = render(as_unit(x), to), render(x, to)
            assert floats.dtype == np.float32
            assert_allclose(floats, bytes_, atol=2 / 255)


def test_floats_keep_full_precision_and_are_clamped() -> None:
    to = Preprocessing((24, 24), (0.5,), (0.5,), "lanczos")
    steps = np.zeros((8, 8, 1), np.float32)
    steps[:, 4:] = 1
    rendered = render(steps, to)
    assert (rendered.min(), rendered.max()) == (0, 1)
    fine = np.full((8, 8, 1), 0.3, np.float32) + np.linspace(0, 1e-3, 8, dtype=np.float32)[:, None]
    assert len(np.unique(render(fine, to))) > 8, "values between two bytes were rounded"


def test_an_image_that_fits_is_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "resize", None)
    for mode in CROP_MODES:
        to = Preprocessing((9, 12), MEAN, STD, crop_mode=mode)
        x = pixels(9, 12)
        assert_array_equal(render(x, to), x.transpose(2, 0, 1) / np.float32(255))
    # the crop alone needs none either
    crop = Preprocessing((8, 8), MEAN, STD, crop_pct=0.8)
    assert_array_equal(render(pixels(10, 10), crop), render(pixels(10, 10)[1:9, 1:9], replace(crop, crop_pct=1.0)))


def test_unit_scale_and_normalization_are_the_plain_formulas() -> None:
    x = pixels(4, 4)
    assert_array_equal(as_unit(x), x / np.float32(255))
    to = Preprocessing((4, 4), MEAN, STD)
    unit = render(x, to)
    expected = (unit.astype(np.float64) - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert_allclose(normalize(unit, to), expected, rtol=1e-5, atol=1e-6)
    assert_array_equal(unit, render(x, to), err_msg="normalize changed its argument")
