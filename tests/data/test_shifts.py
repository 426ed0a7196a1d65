"""Shifts: what each does against other implementations, what stays the source's own, purity, and what is refused."""

import pickle
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageEnhance
from scipy import stats
from sklearn.datasets import load_digits

from ensemble_distill.data import open_source, shifts
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.shifts import SEVERITIES, Shifted, levels, open_shift, shift_names, shifts_for
from ensemble_distill.data.shifts import rotation as rotation_module
from ensemble_distill.data.source import Array, Kind, Source
from ensemble_distill.data.subset import Subset
from ensemble_distill.errors import EdistillError

RNG = np.random.default_rng(0)
DIGITS = (np.kron(load_digits().images[:40], np.ones((3, 3))) * 15).astype(np.uint8)  # (40, 24, 24)
Y = np.arange(40) % 10
FEATURES = (RNG.normal(size=(40, 5)) * [1, 10, 100, 0.1, 0]).astype(np.float32)
SOURCES: dict[Kind, Arrays] = {
    "pixels": Arrays(DIGITS[..., None], Y, "pixels", tuple("abcdefghij")),
    "tensor": Arrays((DIGITS[:, None] / np.float32(70) - 1).astype(np.float32), Y, "tensor"),
    "features": Arrays(FEATURES, FEATURES[:, 0], "features"),
}
ALL = [(kind, name, severity) for kind in SOURCES for name in shifts_for(kind) for severity in SEVERITIES]
SHIFTS = [(kind, name) for kind in SOURCES for name in shifts_for(kind)]


def pixels(x: Array) -> Arrays:
    return Arrays(x[None], None, "pixels")


def tensor(x: Array) -> Arrays:
    return Arrays(x[None].astype(np.float32), None, "tensor")


def shifted(source: Source, name: str, severity: int, row: int = 0) -> Array:
    return Shifted(source, name, severity).item(row).x


# --- every shift ----------------------------------------------------------------------------------------------


def test_which_shifts_there_are_and_what_they_act_on() -> None:
    assert shift_names() == ("blur", "contrast", "noise", "rotation", "translation")
    assert SEVERITIES == (1, 2, 3, 4, 5)
    assert shifts_for("pixels") == shifts_for("tensor") == shift_names()
    assert shifts_for("features") == ("noise",)


def test_a_module_states_five_amounts_for_each_of_its_kinds() -> None:
    for name in shift_names():
        shift = open_shift(name)
        assert set(shift.AMOUNTS) == shift.KINDS <= set(get_args(Kind))
        for kind in shift.KINDS:
            assert len(set(levels(name, kind))) == len(shift.AMOUNTS[kind]) == len(SEVERITIES)


def test_levels_are_texts_for_tables() -> None:
    assert levels("rotation") == ("18°", "36°", "54°", "72°", "90°")
    assert levels("translation") == ("10 %", "20 %", "30 %", "40 %", "50 %")
    assert levels("blur") == ("2 %", "3 %", "4 %", "5 %", "6 %")
    assert levels("contrast") == ("× 0.4", "× 0.3", "× 0.2", "× 0.1", "× 0.05")
    assert levels("noise") == ("σ 0.08", "σ 0.12", "σ 0.18", "σ 0.26", "σ 0.38")
    assert levels("noise", "features") == levels("noise", "tensor") == ("0.1 σ", "0.2 σ", "0.4 σ", "0.6 σ", "0.8 σ")


def test_only_x_changes() -> None:
    for kind, name, severity in ALL:
        source = SOURCES[kind]
        split = Shifted(source, name, severity)
        assert (split.kind, split.classes, len(split)) == (source.kind, source.classes, len(source))
        assert_array_equal(split.labels, source.labels)
        assert_array_equal(split.scale, source.scale)
        item, own = split.item(7), source.item(7)
        assert (split.name(7), item.y, item.kind) == ("row 7", own.y, kind)
        assert (item.x.dtype, item.x.shape) == (own.x.dtype, own.x.shape)
        assert (item.x != own.x).any()
        before = own.x.copy()
        assert not np.shares_memory(item.x, source.item(7).x)
        assert_array_equal(source.item(7).x, before)


def test_severities_grow() -> None:
    for kind, name in SHIFTS:
        source = SOURCES[kind]
        changes = [
            np.mean([np.abs(shifted(source, name, severity, row) - source.x[row].astype(float)) for row in range(40)])
            for severity in SEVERITIES
        ]
        assert changes[0] > 0.05 * changes[-1]
        assert (np.diff(changes) > 0).all(), changes


def test_an_item_is_pure_in_shift_severity_and_row() -> None:
    for kind, name in SHIFTS:
        keys = list(product(SEVERITIES, (0, 3, 39)))
        splits = {severity: Shifted(SOURCES[kind], name, severity) for severity in SEVERITIES}
        first = {(severity, row): splits[severity].item(row).x for severity, row in keys}
        for severity, row in reversed(keys):
            copied = pickle.loads(pickle.dumps(splits[severity]))
            for split in (splits[severity], Shifted(SOURCES[kind], name, severity), copied):
                assert_array_equal(split.item(row).x, first[severity, row])
            assert copied.digest == splits[severity].digest


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 5),
    name=st.sampled_from(shift_names()),
    severity=st.sampled_from(SEVERITIES),
)
def test_every_size_and_number_of_channels(height: int, width: int, channels: int, name: str, severity: int) -> None:
    x = np.random.default_rng(height * 9 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    x[0, 0] = 0  # the lowest value is what rotating a tensor takes for black
    moved = shifted(pixels(x), name, severity)
    assert (moved.dtype, moved.shape) == (np.uint8, x.shape)
    floats = shifted(tensor(x.transpose(2, 0, 1) / 255), name, severity)
    assert (floats.dtype, floats.shape) == (np.float32, (channels, height, width))
    assert np.isfinite(floats).all()
    if name != "noise":  # whose amounts differ; of the others, a tensor in [0, 1] is the unrounded image
        assert_allclose(moved, 255 * floats.transpose(1, 2, 0), atol=0.501)
        for channel in range(channels):  # each on its own, alpha or not
            assert_array_equal(
                shifted(pixels(x[..., channel : channel + 1]), name, severity)[..., 0], moved[..., channel]
            )


def test_a_single_pixel_stays_unless_there_is_noise() -> None:
    one = np.full((1, 1, 1), 200, np.uint8)
    for name, severity in product(shift_names(), SEVERITIES):
        assert (shifted(pixels(one), name, severity) == one).all() == (name != "noise")
        assert shifted(tensor(one), name, severity) == 200  # alone in its channel: no deviation to be relative to


# --- digests --------------------------------------------------------------------------------------------------


def test_digests_tell_source_shift_and_severity_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [SOURCES[kind].digest for kind in SOURCES]
    digests += [Shifted(SOURCES[kind], name, severity).digest for kind, name, severity in ALL]
    assert len(set(digests)) == len(ALL) + 3
    split = Shifted(SOURCES["pixels"], "rotation", 2)
    assert split.digest == Shifted(SOURCES["pixels"], "rotation", 2).digest
    assert len(split.digest) == 64
    assert split.digest_scope == "all arrays whole; rotation of severity 2 (36°)"
    before = split.digest
    monkeypatch.setitem(rotation_module.AMOUNTS, "pixels", (10, 20, 30, 40, 50))
    assert split.digest != before, "another version's amounts are other data"


# --- the five -------------------------------------------------------------------------------------------------


def test_rotation_is_pillows() -> None:
    for shape in [(21, 21), (24, 24), (17, 30), (30, 19)]:
        for severity in SEVERITIES:
            x = np.pad(RNG.random((shape[0] - 4, shape[1] - 4), dtype=np.float32), 2)  # they blend borders differently
            expected = np.asarray(Image.fromarray(x).rotate(18 * severity, Image.Resampling.BILINEAR, fillcolor=0))
            rotated = shifted(tensor(x[None]), "rotation", severity)
            assert_allclose(rotated[0], expected, atol=1e-5)
            assert_allclose(shifted(tensor(3 * x[None] - 7), "rotation", severity), 3 * rotated - 7, atol=1e-5)


def test_rotation_blends_the_border_into_black() -> None:
    height, width, angle = 5, 8, np.deg2rad(36)
    white = np.full((height, width, 1), 255, np.uint8)
    expected = np.zeros((height, width))
    for row, column in np.ndindex(height, width):
        y, x = row - (height - 1) / 2, column - (width - 1) / 2
        own_y = y * np.cos(angle) + x * np.sin(angle) + (height - 1) / 2
        own_x = x * np.cos(angle) - y * np.sin(angle) + (width - 1) / 2
        inside = [np.clip(min(at + 1, size - at), 0, 1) for at, size in ((own_y, height), (own_x, width))]
        expected[row, column] = 255 * inside[0] * inside[1]
    assert 0 in expected
    assert_allclose(shifted(pixels(white), "rotation", 2)[..., 0], expected, atol=0.51)


def test_a_quarter_turn_is_exact() -> None:
    x = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert_array_equal(shifted(pixels(x), "rotation", 5), np.rot90(x))


def test_translation_goes_round_to_the_right() -> None:
    for width, steps in [(28, (3, 6, 8, 11, 14)), (32, (3, 6, 10, 13, 16)), (7, (1, 1, 2, 3, 4))]:
        x = RNG.integers(0, 256, (6, width, 3), dtype=np.uint8)
        for severity, step in zip(SEVERITIES, steps, strict=True):
            expected = np.empty_like(x)
            for column in range(width):
                expected[:, (column + step) % width] = x[:, column]
            assert_array_equal(shifted(pixels(x), "translation", severity), expected)


def test_blur_is_a_gaussian_average_with_repeated_borders() -> None:
    for severity in SEVERITIES:
        height, width = 40, 50
        x = RNG.random((2, height, width))
        std = (severity + 1) / 100 * height
        reach = int(5 * std) + 1
        weights = stats.norm.pdf(np.arange(-reach, reach + 1), scale=std)
        weights /= weights.sum()
        padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        rows = sum(weight * padded[:, at : at + height] for at, weight in enumerate(weights))
        expected = sum(weight * rows[..., at : at + width] for at, weight in enumerate(weights))
        assert_allclose(shifted(tensor(x), "blur", severity), expected, atol=2e-4)


def test_the_mildest_blur_is_visible_and_the_worst_keeps_what_is_large() -> None:
    for size in [28, 32, 224]:
        columns = np.arange(size)
        fine = np.broadcast_to(255.0 * (columns % 2), (size, size))
        coarse = np.broadcast_to(255.0 * (columns >= size // 2), (size, size))
        assert np.ptp(shifted(tensor(fine[None]), "blur", 1)[0, :, size // 4 : -size // 4]) < 0.45 * 255
        assert np.ptp(shifted(tensor(coarse[None]), "blur", 5)) > 0.99 * 255


def test_contrast_is_lowered_about_each_channels_mean() -> None:
    for severity, left in [*enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1)]:
        gray = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
        expected = np.asarray(ImageEnhance.Contrast(Image.fromarray(gray)).enhance(left), dtype=float)
        # Pillow rounds the mean and cuts off fractions
        assert_allclose(shifted(pixels(gray[..., None]), "contrast", severity)[..., 0], expected, atol=1.51)
        x = RNG.normal([3, -200], [1, 50], (20, 30, 2)).transpose(2, 0, 1)
        lowered = shifted(tensor(x), "contrast", severity)
        assert_allclose(lowered.mean(axis=(1, 2)), x.mean(axis=(1, 2)), rtol=1e-5)
        assert_allclose(lowered.std(axis=(1, 2)), left * x.std(axis=(1, 2)), rtol=1e-4)
        normalized = (DIGITS[0] / 255 - 0.3) / 0.2
        alike = (shifted(pixels(DIGITS[0, ..., None]), "contrast", severity)[..., 0] / 255 - 0.3) / 0.2
        assert_allclose(shifted(tensor(normalized[None]), "contrast", severity)[0], alike, atol=0.51 / 255 / 0.2)


def test_noise_on_pixels_is_gaussian_and_cut_off() -> None:
    for severity, std in [*enumerate((0.08, 0.12, 0.18, 0.26, 0.38), 1)]:
        noisy = shifted(pixels(np.full((64, 64, 3), 128, np.uint8)), "noise", severity).ravel() / 255
        beyond = stats.norm.cdf(-(128 - 0.5) / 255 / std)
        assert stats.binomtest(int((noisy == 0).sum()), noisy.size, beyond).pvalue > 1e-3
        bins = np.arange(10.5, 246, 10) / 255
        expected = np.diff(stats.norm.cdf(bins, loc=128 / 255, scale=std)) * noisy.size
        found = np.histogram(noisy, bins)[0]
        often = expected > 5
        rest = [noisy.size - counts[often].sum() for counts in (found, expected)]
        assert stats.chisquare([*found[often], rest[0]], [*expected[often], rest[1]]).pvalue > 1e-3


@pytest.mark.thorough
def test_noise_on_tensors_and_features_is_relative() -> None:
    for severity, share in [*enumerate((0.1, 0.2, 0.4, 0.6, 0.8), 1)]:
        x = RNG.normal([3, -200, 7], [1, 50, 0], (60, 40, 3)).transpose(2, 0, 1).astype(np.float32)
        noise = shifted(tensor(x), "noise", severity) - x
        for channel, deviation in enumerate((1, 50)):
            assert stats.kstest(noise[channel].ravel() / share / deviation, "norm").pvalue > 1e-3
        assert not noise[2].any(), "a constant channel has no deviation"
        table = (RNG.normal(size=(3000, 3)) * [1, 100, 0]).astype(np.float32)
        source = Arrays(table, None, "features")
        split = Shifted(source, "noise", severity)
        noise = np.stack([split.item(row).x for row in range(3000)]) - table
        for column, deviation in enumerate((1, 100)):
            assert stats.kstest(noise[:, column] / share / deviation, "norm", mode="asymp").pvalue > 1e-3
        assert not noise[:, 2].any(), "a constant column has no deviation"


def test_severities_share_their_noise_and_rows_do_not() -> None:
    x = np.tile(RNG.normal(size=(1, 20, 20)), (2, 1, 1, 1)).astype(np.float32)
    source = Arrays(x, None, "tensor")
    mild, strong = (shifted(source, "noise", severity) - x[0] for severity in (1, 5))
    assert_allclose(strong, 8 * mild, atol=1e-5)
    other = shifted(source, "noise", 1, row=1) - x[1]
    assert abs(np.corrcoef(mild.ravel(), other.ravel())[0, 1]) < 0.2


# --- over every source ----------------------------------------------------------------------------------------


def test_a_subset_is_shifted_by_its_own_rows() -> None:
    subset = Subset(SOURCES["pixels"], np.array([5, 2]))
    split = Shifted(subset, "rotation", 3)
    assert (len(split), split.name(0), split.item(1).y) == (2, "row 5", 2)
    assert_array_equal(split.item(0).x, shifted(SOURCES["pixels"], "rotation", 3, row=5))
    assert split.digest != Shifted(SOURCES["pixels"], "rotation", 3).digest


def test_folders_and_factories_are_shifted_at_their_own_sizes_in_every_process(tmp_path: Path) -> None:
    for name, size in (("a", (7, 9)), ("b", (12, 5))):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "images" / name / "x.png")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef make():\n"
        "    return [(np.arange(4, dtype=np.float32) * row, row % 2) for row in range(6)]\n"
    )
    folder = open_source(tmp_path / "images")
    for name in shift_names():
        split = Shifted(folder, name, 4)
        assert (split.classes, split.name(1)) == (("a", "b"), "b/x.png")
        assert [split.item(row).x.shape for row in (0, 1)] == [(7, 9, 3), (12, 5, 3)]
        assert_array_equal(pickle.loads(pickle.dumps(split)).item(1).x, split.item(1).x)
    own = Shifted(open_source(f"{tmp_path}/mine.py:make"), "noise", 4)
    assert_array_equal(pickle.loads(pickle.dumps(own)).item(1).x, own.item(1).x)
    assert_array_equal(own.labels, [0, 1, 0, 1, 0, 1])


# --- refusals and new shifts ----------------------------------------------------------------------------------


def test_other_severities_are_refused() -> None:
    for severity in [0, 6, -1]:
        with pytest.raises(EdistillError, match=f"shift blur has severities 1 to 5, but {severity} was asked for"):
            Shifted(SOURCES["pixels"], "blur", severity)


def test_unknown_shifts_are_refused() -> None:
    with pytest.raises(EdistillError, match=r"no shift 'rotate'\. Did you mean rotation\? Use one of blur, contrast"):
        Shifted(SOURCES["pixels"], "rotate", 1)
    for name in ("", "__init__", "fog.fog"):
        with pytest.raises(EdistillError, match=f"no shift {name!r}"):
            open_shift(name)


def test_a_shift_that_cannot_act_on_the_data_is_refused() -> None:
    for name in sorted(set(shift_names()) - set(shifts_for("features"))):
        message = f"shift {name} acts on pixels and tensor, but the data holds features. For those use noise."
        with pytest.raises(EdistillError, match=message):
            Shifted(SOURCES["features"], name, 1)
        with pytest.raises(EdistillError, match=message):
            levels(name, "features")


def test_a_new_shift_is_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dead_columns.py").write_text(
        "KINDS = frozenset({'features'})\nAMOUNTS = {'features': (1, 2, 3, 4, 5)}\n"
        "def level(amount, kind):\n    return f'{amount} columns'\n"
        "def apply(x, amount, origin):\n    y = x.astype(float)\n    y[:amount] = 0\n    return y\n"
    )
    monkeypatch.setattr(shifts, "__path__", [*shifts.__path__, str(tmp_path)])
    assert shifts_for("features") == ("dead-columns", "noise")
    split = Shifted(SOURCES["features"], "dead-columns", 2)
    x = split.item(3).x
    assert (split.level, x.dtype) == ("2 columns", np.float32)
    assert_array_equal(x, [0, 0, *FEATURES[3, 2:]])
    del sys.modules["ensemble_distill.data.shifts.dead_columns"]
