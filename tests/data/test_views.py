"""Views: pure in (seed, view, row), what each transform does, and what is refused."""

import itertools
import math
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, stats

from ensemble_distill.data import views
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.rendering import normalize, render
from ensemble_distill.data.source import Array, Item, Plan, Source, View
from ensemble_distill.data.views import UsersPlan, affine, open_view, require_kind, view_names
from ensemble_distill.data.views.affine import Affine
from ensemble_distill.data.views.crop_flip import CropFlip
from ensemble_distill.data.views.noise import NOISE
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing

RNG = np.random.default_rng(0)
TO = Preprocessing((32, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
ROWS = 12
SOURCES: dict[str, Arrays] = {
    "pixels": Arrays(RNG.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8), np.arange(ROWS), "pixels"),
    "tensor": Arrays(RNG.normal(size=(ROWS, 2, 16, 24)).astype(np.float32), np.arange(ROWS), "tensor"),
    "features": Arrays(
        (RNG.normal(size=(ROWS, 5)) * [1, 10, 100, 0.1, 0]).astype(np.float32), np.arange(ROWS), "features"
    ),
}
SPECS = [
    *view_names(),
    "crop-flip+mixup",
    "affine+mixup",
    "affine+crop-flip",
    "noise+mixup",
    "crop-flip+noise",
    "mixup+noise+crop-flip",
    "affine+mixup+ods",
]


def seen(plan: Plan, source: Source, to: Preprocessing | None = TO) -> Array:
    return plan.x([source.item(row) for row in plan.rows], to)


def acting_on(spec: str) -> Iterator[tuple[Source, View]]:
    """Each source that the view can act on, with the view opened for it."""
    for source in SOURCES.values():
        view = open_view(spec, source.scale)
        if source.kind in view.kinds:
            yield source, view


# --- every view -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_a_view_is_pure_whatever_the_order(spec: str) -> None:
    view = open_view(spec)
    keys = [(seed, index, row) for seed in (0, 7) for index in range(3) for row in range(ROWS)]
    plans = {key: view.plan(*key, total=ROWS) for key in keys}
    for key in reversed(keys):
        again = view.plan(*key, total=ROWS)
        assert again == plans[key]
        assert hash(again) == hash(plans[key])
        assert plans[key].rows[0] == key[2]
        assert all(0 <= row < ROWS for row in plans[key].rows)
    for source, view in acting_on(spec):
        first = {key: seen(view.plan(*key, total=ROWS), source) for key in keys[::5]}
        for key in reversed(first):
            assert first[key].dtype == np.float32
            assert np.isfinite(first[key]).all()
            assert_array_equal(seen(view.plan(*key, total=ROWS), source), first[key])


def test_views_seeds_and_rows_differ_unless_nothing_is_drawn() -> None:
    for spec in SPECS:
        plans = {
            (seed, index, row): open_view(spec).plan(seed, index, row, ROWS)
            for seed in range(2)
            for index in range(3)
            for row in range(ROWS)
        }
        expected = ROWS if spec == "none" else len(plans)
        assert len(set(plans.values())) == expected


def test_views_and_plans_travel_to_other_processes() -> None:
    for spec in SPECS:
        for source, view in acting_on(spec):
            plan = view.plan(0, 1, 3, ROWS)
            assert pickle.loads(pickle.dumps(plan)) == plan
            copied = pickle.loads(pickle.dumps(view)).plan(0, 1, 3, ROWS)
            assert_array_equal(seen(copied, source), seen(plan, source))


def test_shapes_and_labels() -> None:
    for spec in SPECS:
        for source, view in acting_on(spec):
            plan = view.plan(0, 0, 4, ROWS)
            x = seen(plan, source)
            assert x.shape == ((3, 32, 32) if source.kind == "pixels" else source.item(0).x.shape)
            x[:] = 0  # the source's own array must be out of reach
            assert source.item(4).x.any()
            labels = plan.y([source.item(row) for row in plan.rows])
            assert labels is not None
            own, partner, weight = labels
            assert own == 4
            assert partner == plan.rows[-1]
            assert (weight < 1) == ("mixup" in spec or "swap" in spec)
            assert plan.y([Item(source.item(row).x, None, source.kind) for row in plan.rows]) is None


def test_the_order_of_names_does_not_matter() -> None:
    for spec, other in [("crop-flip+noise+mixup", "mixup + crop-flip + noise"), ("noise+none", "none+noise")]:
        assert open_view(spec).plan(1, 2, 3, ROWS) == open_view(other).plan(1, 2, 3, ROWS)


def test_a_draw_depends_on_no_other_transform() -> None:
    for name, position in (("crop-flip", 0), ("noise", 1)):
        alone = open_view(name).plan(0, 1, 2, ROWS).changes[0][0]  # type: ignore[attr-defined]
        together = open_view("crop-flip+noise+mixup").plan(0, 1, 2, ROWS)
        assert together.changes[0][position] == alone  # type: ignore[attr-defined]
        assert together.changes[1][position] != alone  # type: ignore[attr-defined]
    assert open_view("mixup").plan(0, 1, 2, ROWS).rows == together.rows


# --- none -------------------------------------------------------------------------------------------------


def test_none_is_the_plain_input() -> None:
    plan = open_view("none").plan(0, 3, 5, ROWS)
    assert_array_equal(seen(plan, SOURCES["pixels"]), normalize(render(SOURCES["pixels"].x[5], TO), TO))
    for kind in ("tensor", "features"):
        for to in (None, TO):
            assert_array_equal(seen(plan, SOURCES[kind], to), SOURCES[kind].x[5])


# --- crop-flip --------------------------------------------------------------------------------------------


@pytest.mark.thorough
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    top=st.floats(0, 1, exclude_max=True),
    left=st.floats(0, 1, exclude_max=True),
    flip=st.booleans(),
)
def test_crop_flip_is_pad_crop_flip(height: int, width: int, top: float, left: float, flip: bool) -> None:
    x = np.arange(height * width * 2).reshape(height, width, 2)
    tall, wide = height // 8, width // 8
    padded = np.pad(x, ((tall, tall), (wide, wide), (0, 0)), mode="reflect")
    y, z = int(top * (2 * tall + 1)), int(left * (2 * wide + 1))
    expected = padded[y : y + height, z : z + width]
    expected = expected[:, ::-1] if flip else expected
    assert_array_equal(CropFlip(top, left, flip).apply(x, "pixels"), expected)
    channels_first = CropFlip(top, left, flip).apply(x.transpose(2, 0, 1), "tensor")
    assert_array_equal(channels_first, expected.transpose(2, 0, 1))


def test_crop_flip_draws_every_shift_equally_and_flips_half() -> None:
    view = open_view("crop-flip")
    grid = np.arange(32 * 32, dtype=np.int64).reshape(32, 32, 1)
    shifts: Counter[tuple[int, int]] = Counter()
    flips = 0
    for row in range(4000):
        change: Any = view.plan(0, 0, row, 4000).changes[0][0]  # type: ignore[attr-defined]
        flips += change.flip
        y, x = divmod(int(CropFlip(change.top, change.left, False).apply(grid, "pixels")[16, 16, 0]), 32)
        shifts[y - 16, x - 16] += 1
    assert set(shifts) == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}
    assert stats.chisquare(list(shifts.values())).pvalue > 1e-3
    assert stats.binomtest(flips, 4000).pvalue > 1e-3


def test_members_of_other_sizes_see_the_same_crop() -> None:
    """Rendering a crop at twice the size and back is rendering it at its own."""
    source, plan = SOURCES["pixels"], open_view("crop-flip").plan(0, 0, 1, ROWS)
    plain = Preprocessing((32, 32), (0.0,), (1.0,), "nearest")
    double = Preprocessing((64, 64), (0.0,), (1.0,), "nearest")
    assert_array_equal(seen(plan, source, double)[:, ::2, ::2], seen(plan, source, plain))


# --- noise ------------------------------------------------------------------------------------------------


def smooth(height: int, width: int) -> Array:
    """A picture that bilinear interpolation follows closely: (height, width), in [0, 1]."""
    y, x = np.mgrid[:height, :width]
    return (0.5 + 0.25 * np.sin(2 * np.pi * y / height) + 0.25 * np.cos(2 * np.pi * x / width)).astype(np.float32)


def test_affine_shows_each_point_where_it_went() -> None:
    """Points of the picture, moved forward by trigonometry: what is shown there is what was where they came from."""
    for change in [
        Affine(0, 0, 1, 0, 0),
        Affine(0.3, 0, 1, 0, 0),
        Affine(0, 0.2, 1, 0, 0),
        Affine(0, 0, 1.2, 0, 0),
        Affine(0, 0, 1, 0.1, -0.05),
        Affine(-0.2, 0.1, 0.9, -0.04, 0.08),
    ]:
        for kind in ["pixels", "tensor"]:
            height, width = 48, 40
            picture = smooth(height, width)
            x = picture[..., None] if kind == "pixels" else picture[None]
            shown = change.apply(x, kind)
            assert shown.dtype == np.float32
            assert shown.shape == x.shape
            shown = shown[..., 0] if kind == "pixels" else shown[0]
            for down, right in itertools.product((-6, 0, 5), (-7, 1, 4)):  # from the center, in pixels
                sheared = (
                    down,
                    right + math.tan(-change.shear) * -down,
                )  # a shear tilts columns, to the right as one goes down
                cos, sin = math.cos(change.rotation), math.sin(change.rotation)
                turned = cos * sheared[0] - sin * sheared[1], sin * sheared[0] + cos * sheared[1]
                row, column = (change.zoom * place for place in turned)
                row, column = (
                    row + (height - 1) / 2 + change.down * height,
                    column + (width - 1) / 2 + change.right * width,
                )
                found = ndimage.map_coordinates(shown, [[row], [column]], order=1)[0]
                there = ndimage.map_coordinates(
                    picture, [[down + (height - 1) / 2], [right + (width - 1) / 2]], order=1
                )[0]
                assert found == pytest.approx(there, abs=0.01)


def test_affine_draws_within_its_bounds_and_repeats_the_border() -> None:
    draws = [affine.draw(("affine", 0, 0, row), None) for row in range(2000)]
    for name, bound in (("rotation", affine.ROTATION), ("shear", affine.SHEAR), ("down", affine.SHIFT)):
        values = np.array([getattr(d, name) for d in draws]) / bound
        assert stats.kstest(values, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    zooms = np.log([d.zoom for d in draws]) / affine.ZOOM
    assert stats.kstest(zooms, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    striped = np.zeros((1, 10, 10), np.float32)
    striped[0, 0] = 1
    assert_array_equal(Affine(0, 0, 1, 0.3, 0).apply(striped, "tensor")[0, :4], np.ones((4, 10)))


def test_noise_is_gaussian_of_the_stated_size() -> None:
    plain = Preprocessing((32, 32), (0.0,), (1.0,))
    gray = Arrays(np.full((1, 32, 32, 3), 128, np.uint8), None, "pixels")
    noise = (seen(open_view("noise").plan(0, 0, 0, 1), gray, plain) - 128 / 255).ravel() / NOISE
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    tensor = Arrays(np.full((1, 3, 32, 32), 5, np.float32), None, "tensor")
    noise = (seen(open_view("noise").plan(0, 0, 0, 1), tensor) - 5).ravel() / NOISE
    assert stats.kstest(noise, "norm").pvalue > 1e-3


def test_noise_on_pixels_stays_in_range_and_on_features_has_their_scale() -> None:
    plain = Preprocessing((32, 32), (0.0,), (1.0,))
    black = Arrays(np.zeros((1, 32, 32, 1), np.uint8), None, "pixels")
    noisy = seen(open_view("noise").plan(0, 0, 0, 1), black, plain)
    assert noisy.min() == 0
    assert 0.4 < (noisy > 0).mean() < 0.6
    source = SOURCES["features"]
    view = open_view("noise", source.scale)
    noise = np.stack([seen(view.plan(0, index, 0, ROWS), source) - source.x[0] for index in range(2000)])
    assert_allclose(noise.std(axis=0), NOISE * np.array(source.scale), rtol=0.08)


def test_members_of_other_sizes_see_the_same_noise() -> None:
    source, plan = SOURCES["pixels"], open_view("noise").plan(0, 0, 1, ROWS)
    plain = Preprocessing((32, 32), (0.0,), (1.0,), "nearest")
    double = Preprocessing((64, 64), (0.0,), (1.0,), "nearest")
    assert_array_equal(seen(plan, source, double)[:, 1::2, 1::2], seen(plan, source, plain))


# --- mixup ------------------------------------------------------------------------------------------------


def test_mixup_mixes_rendered_rows_before_normalization() -> None:
    big = Arrays(RNG.integers(0, 256, (ROWS, 40, 48, 3), dtype=np.uint8), np.arange(ROWS), "pixels")
    mixed = open_view("mixup").plan(0, 0, 1, ROWS)
    own, partner = mixed.rows
    weight = mixed.weight  # type: ignore[attr-defined]
    expected = weight * render(big.x[own], TO) + (1 - weight) * render(big.x[partner], TO)
    assert_allclose(seen(mixed, big), normalize(expected.astype(np.float32), TO), atol=1e-5)
    for kind in ("tensor", "features"):
        x = SOURCES[kind].x
        assert_allclose(seen(mixed, SOURCES[kind]), weight * x[own] + (1 - weight) * x[partner], atol=1e-5)


def test_partners_and_weights_are_uniform() -> None:
    for row in (0, 4, 9):
        plans: list[Any] = [open_view("mixup").plan(0, index, row, 10) for index in range(1000)]
        partners = Counter(plan.rows[1] for plan in plans)
        assert set(partners) == set(range(10)) - {row}
        assert stats.chisquare(list(partners.values())).pvalue > 1e-3
        assert stats.kstest([plan.weight for plan in plans], "uniform").pvalue > 1e-3


def test_a_row_alone_is_its_own_partner() -> None:
    assert open_view("mixup").plan(0, 0, 0, 1).rows == (0, 0)


# --- refusals and users' own ------------------------------------------------------------------------------


def test_refused_names() -> None:
    for spec, message in [
        ("crop_flip", "no 'crop_flip'. Did you mean crop-flip?"),
        ("mixup+noize", "no 'noize'. Did you mean noise?"),
        (
            "",
            "Use one of affine, confods, crop-flip, mixup, noise, none, ods, swap, token-dropout, several joined by +",
        ),
        ("noise+", "no ''"),
        ("rotate", "Use one of affine, confods, crop-flip"),
        ("noise+mixup+noise", "names noise twice"),
    ]:
        with pytest.raises(EdistillError, match=message.replace("+", r"\+").replace("?", r"\?")):
            open_view(spec)


def test_a_view_that_cannot_act_on_the_data_is_refused() -> None:
    for spec in ("crop-flip", "mixup+crop-flip"):
        with pytest.raises(EdistillError, match=r"acts on pixels and tensor, .* features\. For .*mixup, noise, none"):
            require_kind(open_view(spec), "features", spec)
    require_kind(open_view("mixup+noise"), "features", "mixup+noise")


def test_pixels_without_preprocessing_are_refused() -> None:
    with pytest.raises(EdistillError, match="holds pixels, but the network states no preprocessing"):
        seen(open_view("none").plan(0, 0, 0, ROWS), SOURCES["pixels"], None)


def test_a_new_transform_is_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "cut_mix.py").write_text(
        "from ensemble_distill.data.rendition import Phase\nPHASE = Phase.MIX\n"
        "KINDS = frozenset({'pixels'})\ndef draw(key, row, total):\n    return 0, 0.5\n"
    )
    monkeypatch.setattr(views, "__path__", [*views.__path__, str(tmp_path)])
    assert "cut-mix" in view_names()
    plan: Any = open_view("cut-mix+crop-flip").plan(0, 0, 3, ROWS)
    assert (plan.rows, plan.weight) == ((3, 0), 0.5)
    with pytest.raises(EdistillError, match="cut-mix and mixup both mix two rows"):
        open_view("mixup+cut-mix")
    del sys.modules["ensemble_distill.data.views.cut_mix"]


def test_users_views(tmp_path: Path) -> None:
    file = tmp_path / "my+views.py"
    file.write_text(
        "from ensemble_distill.data.views import open_view\n"
        "def make():\n    return open_view('noise')\n"
        "def wrong():\n    return object()\n"
    )
    planned, same = (view.plan(0, 0, 3, ROWS) for view in (open_view(f"{file}:make"), open_view("noise")))
    assert isinstance(planned, UsersPlan)
    assert (planned.own, planned.rows) == (same, same.rows)
    with pytest.raises(EdistillError, match=r"returned a object\. Return an object with plan\(seed"):
        open_view(f"{file}:wrong")
    with pytest.raises(EdistillError, match=r"views\.transform is .*gone\.py:make', but there is no file"):
        open_view("gone.py:make")
