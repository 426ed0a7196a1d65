"""Members that predict numbers: what they may return, what it becomes in the target's unit, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import forward, to_outputs
from numpy.testing import assert_allclose, assert_array_equal
from tiny import refused
from tiny_regression import LEVEL, SPREAD, Float64
from torch import Tensor, nn

from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.moments import as_answers, check_spread, check_units

UNITS = (LEVEL, SPREAD)


def member(output: str, units: tuple[float, float] | None = None, variance: Any = None) -> Member:
    return Member("Ada", "0" * 64, output, units=units, variance=variance)


class Says(nn.Module):
    """Whatever the function makes of x."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


# --- shapes -----------------------------------------------------------------------------------------------------

MEANS: list[Callable[[Tensor], Any]] = [
    lambda x: x[:, 0],
    lambda x: x[:, :1],
    lambda x: (x[:, :1],),
    lambda x: x[:, :1].clone().requires_grad_(),
    lambda x: x[:, :1].squeeze(),
]
PAIRS: list[Callable[[Tensor], Any]] = [
    lambda x: x[:, :2],
    lambda x: (x[:, 0], x[:, 1]),
    lambda x: [x[:, :1], x[:, 1:2]],
    lambda x: (x[:, 0], x[:, 1:2]),
    lambda x: (x[:, 0].squeeze(), x[:, 1].squeeze()),
    lambda x: x[:, :2].squeeze(),
]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_columns_flat_tensors_and_pairs_are_one(rows: int) -> None:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    for output, width, answers in (("mean", 1, MEANS), ("mean-variance", 2, PAIRS), ("mean-logvar", 2, PAIRS)):
        for number, answer in enumerate(answers):
            found = forward(Says(answer), x, member(output), "here")
            assert torch.equal(found, x[:, :width]), f"{output}, answer {number}"
            assert not found.requires_grad


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_other_shapes_are_refused(rows: int) -> None:
    x = torch.zeros(rows, 3)
    wrong: list[tuple[str, Callable[[Tensor], Any], str]] = [
        ("mean", lambda x: (x[:, 0], x[:, 1]), f"({rows},), ({rows},)"),
        ("mean", lambda x: x[:, :1, None], f"({rows}, 1, 1)"),
        ("mean", lambda x: x[:, 0].tolist(), "float"),
        ("mean-variance", lambda x: x[:, :1], f"({rows}, 1)"),
        ("mean-variance", lambda x: x[:, 0], f"({rows},)"),
        ("mean-logvar", lambda x: x, f"({rows}, 3)"),
        ("mean-logvar", lambda x: {"mean": x[:, 0]}, "dict"),
        ("mean-logvar", lambda x: None, "NoneType"),
        ("mean-logvar", lambda x: (x[:, 0], None), f"({rows},), NoneType"),
        ("mean-logvar", lambda x: torch.zeros(rows + 1, 2), f"({rows + 1}, 2)"),
        ("mean-logvar", lambda x: torch.zeros(2, rows + 1), f"(2, {rows + 1})"),
        ("mean-logvar", lambda x: torch.distributions.Normal(x[:, 0], 1.0), "Normal"),
    ]
    for output, answer, got in wrong:
        with refused("Member Ada returns", got, f"for {rows} rows", output, "teachers.output", "teachers.model"):
            forward(Says(answer), x, member(output), "here")


# --- units ------------------------------------------------------------------------------------------------------


def test_units_by_hand() -> None:
    """Targets of mean 100 and standard deviation 10: half a deviation is 105, and a variance of .04 is 4."""
    units = (100.0, 10.0)
    for kind, raw, moments in (
        (member("mean", units, 9.0), [0.5], [105, np.log(9)]),
        (member("mean-variance", units), [0.5, 0.04], [105, np.log(4)]),
        (member("mean-logvar", units), [0.5, np.log(0.04)], [105, np.log(4)]),
        (member("mean", None, 9.0), [-0.5], [-0.5, np.log(9)]),
        (member("mean-variance"), [-0.5, 0.04], [-0.5, np.log(0.04)]),
        (member("mean-logvar"), [-0.5, np.log(0.04)], [-0.5, np.log(0.04)]),
    ):
        found = to_outputs(torch.tensor([raw, raw]), kind, "test", [0, 1])
        assert found.dtype == np.float32
        assert_allclose(found, [moments, moments], rtol=1e-6)


def test_each_target_has_a_variance_in_its_own_unit() -> None:
    """A kilowatt and a watt: what is told of one says nothing of the other."""
    raw, kind = torch.tensor([[3.0, 2500.0]]), member("mean", None, (0.3, 9e4))
    moments = [[3, 2500, np.log(0.3), np.log(9e4)]]
    assert_allclose(to_outputs(raw, kind, "test", [0]), moments, rtol=1e-6)
    assert_allclose(as_answers(raw, kind), moments, rtol=1e-6)
    assert Member(**{**kind.to_json(), "preprocessing": None}) == kind
    with refused("Ada says 2 targets", "teachers.variance is 0.3", "Give a list of 2", "variance = [0.3, 0.3]"):
        to_outputs(raw, member("mean", None, 0.3), "test", [0])
    with refused("Ada says 3 targets", "teachers.variance is a list of 2", "Give a list of 3"):
        to_outputs(torch.ones(1, 3), kind, "test", [0])
    with refused("Ada says 1 target a row", "teachers.variance is a list of 2", "Give a number"):
        to_outputs(torch.ones(1, 1), kind, "test", [0])
    assert_allclose(to_outputs(torch.ones(1, 1), member("mean", None, (0.3,)), "test", [0]), [[1, np.log(0.3)]])


def test_units_are_applied_before_rounding() -> None:
    """About a million float32 goes in steps of a sixteenth: .03 and .02 are 0 each, and together one step."""
    found = to_outputs(torch.tensor([[0.02, 0.0]]), member("mean-logvar", (1_000_000.03, 1.0)), "test", [0])
    assert_array_equal(found, np.array([[1_000_000.0625, 0]], np.float32))


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.0, -0.0, -2.5])
def test_a_variance_is_above_0(variance: float) -> None:
    raw = torch.tensor([[1.0, 0.5], [1.0, variance], [1.0, 0.5]])
    with refused("Member Ada", f"the variance {variance:.4g}", "at row 8 of test", '"mean-logvar"', "softplus"):
        to_outputs(raw, member("mean-variance"), "test", [7, 8, 9])
    to_outputs(raw, member("mean-logvar"), "test", [7, 8, 9])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_outputs_are_finite(value: float) -> None:
    for output, column in itertools.product(("mean-variance", "mean-logvar"), (0, 1)):
        raw = torch.ones(3, 2)
        raw[1, column] = value
        with refused("Member Ada", "at row 8 of test", "not finite", str(value)):
            to_outputs(raw, member(output), "test", [7, 8, 9])
    with refused("Member Ada", "at row 7 of test", "not finite"):
        to_outputs(torch.tensor([[value]]), member("mean", variance=1.0), "test", [7])


@pytest.mark.parametrize(
    ("output", "raw", "units", "said"),
    [
        ("mean-logvar", [1.0, 81.0], None, ["log-variance of 81", '"mean-variance"']),  # a variance, most likely
        ("mean-logvar", [1.0, -81.0], None, ["log-variance of -81"]),
        ("mean-variance", [1.0, 1e36], None, ["log-variance of 82.89"]),
        ("mean-variance", [1.0, 1e-20], (0.0, 1e-10), ["log-variance of -92.1"]),
        ("mean-variance", [-2e18, 1.0], None, ["says -2e+18"]),
        ("mean-logvar", [1e10, 1.0], (0.0, 1e10), ["says 1e+20"]),
    ],
)
def test_what_single_precision_cannot_square_or_divide_by_is_refused(
    output: str, raw: list[float], units: tuple[float, float] | None, said: list[str]
) -> None:
    fine = [0.0, 1.0] if units is None else [0.0, 1 / units[1]]
    with refused("Member Ada", "at row 8 of test", "another unit", *said):
        to_outputs(
            torch.tensor([fine[::-1] if output == "mean-logvar" else fine, raw]), member(output, units), "test", [7, 8]
        )


def test_what_is_let_through_keeps_its_divergences_finite() -> None:
    from ensemble_distill.predictive import open_family

    for sign in (-1, 1):
        raw = torch.tensor([[1e18, sign * 80.0]])
        outputs = torch.from_numpy(to_outputs(raw, member("mean-logvar"), "test", [0]))
        gaussian = open_family("gaussian").predictive(outputs[:, None], None, "probabilities")
        for values in (gaussian.summary().total, gaussian.kl(gaussian), gaussian.nll(torch.tensor([1e18]))):
            assert values.isfinite().all()


# --- evidently another unit -------------------------------------------------------------------------------------


def predictions(rows: int, center: float, spread: float, follows: float, seed: int = 0) -> tuple[Float64, Float64]:
    """Targets, and the best standardized prediction of them by what correlates with them by `follows`."""
    rng = np.random.default_rng(seed)
    z, e = rng.normal(size=(2, rows))
    z = (z - z.mean()) / z.std()
    e -= e.mean() + z * (e @ z) / rows  # exactly uncorrelated
    e /= e.std()
    return center + spread * z, follows * (follows * z + np.sqrt(1 - follows**2) * e)


PLACES = [(454.0, 17.0), (0.0, 10.0), (0.0, 0.01), (-3.0, 0.2), (1e5, 1.0), (2.0, 1.0)]


@pytest.mark.parametrize(("center", "spread"), PLACES)
def test_members_in_another_unit_are_refused(center: float, spread: float) -> None:
    for follows in (0.75, 0.9, 1.0):
        y, standardized = predictions(60, center, spread, follows)
        in_unit = center + spread * standardized
        with refused("Member Ada answers", "teachers.standardized", f"correlation {follows:.2f}"):
            check_units("Ada", standardized, y, None)
        with refused("Member Ada answers", f"standardized by {(center, spread)}", "teachers.standardized"):
            check_units("Ada", center + spread * in_unit, y, (center, spread))
        for units in (None, (center, spread)):
            check_units("Ada", in_unit, y, units)


def test_other_units_of_measure_are_refused() -> None:
    y, standardized = predictions(60, *UNITS, 0.95)
    right = LEVEL + SPREAD * standardized
    aside = right - right.mean()
    for wrong in (
        *(right / 1000, right * 1000, 1.8 * right + 32, np.log(right), right**2),
        *(right + 1.2 * SPREAD, right - 1.2 * SPREAD, LEVEL + 3 * aside, LEVEL - 0.9 * SPREAD + 3 * aside),
    ):
        with refused("Member Ada answers", "the targets are 454 ± 17"):
            check_units("Ada", wrong, y, None)


@pytest.mark.parametrize(("center", "spread"), PLACES)
def test_bad_biased_and_timid_members_are_none_of_those(center: float, spread: float) -> None:
    rng = np.random.default_rng(3)
    for follows in (0.0, 0.3, 0.6, 0.75, 0.95):
        y, standardized = predictions(60, center, spread, follows)
        mean = center + spread * standardized
        others = {
            "biased": mean + 0.95 * spread,
            "biased the other way": mean - 0.95 * spread,
            "timid": center + 0.5 * (mean - center),
            "bold": center + 1.5 * (mean - center),
            "constant": np.full(60, center),
            "opposite": center - 3 * (mean - center),
        }
        if follows < 0.7:
            others |= {"wild": center + 20 * (mean - center), "elsewhere": mean + 5 * spread}
        for what, means in others.items():
            for units in (None, (center, spread)):
                check_units(what, means.astype(np.float32), y.astype(np.float32), units)
    for _ in range(50):
        check_units("ignorant", center + 5 * spread * rng.normal(size=60), y, None)


def test_few_rows_and_constants_tell_nothing() -> None:
    y, standardized = predictions(19, *UNITS, 0.95)
    check_units("few", standardized, y, None)
    y, standardized = predictions(60, *UNITS, 0.95)
    for rows in (60, 3000):  # their mean in float32 is not what each of them is
        level = np.full(rows, 454.1, np.float32)
        varying = np.random.default_rng(0).normal(size=rows).astype(np.float32)
        check_units("of a constant target", varying, level, None)
        check_units("constant", level, varying, None)
        rounded = np.where(varying > 0, np.nextafter(level, np.float32(1e9)), level)
        check_units("of a target that is constant but for rounding", varying, rounded, None)
        check_units("constant but for rounding", rounded, varying, None)


@pytest.mark.parametrize("units", [None, UNITS])
def test_overfitted_members_are_what_they_say(units: tuple[float, float] | None) -> None:
    """Their variances are far too small on other rows, some of them more than others; they say no other thing."""
    scale = 1.0 if units is None else units[1]
    for typical, seed in itertools.product((1e-3, 1e-2, 0.1, 3.0), range(20)):
        rng = np.random.default_rng(seed)
        errors, log_variance = scale * rng.normal(size=100), rng.normal(np.log(typical), 2.0, size=100)
        moments = np.stack([np.full(100, LEVEL), log_variance + 2 * np.log(scale)], 1)
        for output in ("mean-variance", "mean-logvar"):
            check_spread(member(output, units), moments, LEVEL + errors)
