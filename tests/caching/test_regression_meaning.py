"""What a member's second output is, told from the targets, and what single precision or a temperature would spoil."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_regression
from numpy.typing import NDArray
from tiny import refused

from ensemble_distill.facts import Member
from ensemble_distill.settings import load_settings
from ensemble_distill.tasks.checks.labels import as_targets
from ensemble_distill.tasks.checks.moments import check_spread, checked
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

RNG = np.random.default_rng(0)
TRUE = {"a variance": lambda v: v, "a log-variance": np.log, "a standard deviation": np.sqrt}
TRUE["the logarithm of a standard deviation"] = lambda v: 0.5 * np.log(v)
SAID = {"mean-variance": "a variance", "mean-logvar": "a log-variance"}


def answers(output: str, returned: str, variance: float, units: tuple[float, float] | None) -> tuple[Member, ...]:
    """A member said to return `output`, its moments as they were taken for that, and targets that are as it means."""
    member = Member("m", "0" * 64, output, units=units)
    center, scale = units or (0.0, 1.0)
    mean = RNG.normal(size=200)
    y = center + scale * (mean + np.sqrt(variance) * RNG.normal(size=200))
    raw = np.stack([mean, np.full(200, TRUE[returned](variance))], axis=1)
    return member, checked(raw, member, "train", range(200)), y  # type: ignore[return-value]


@pytest.mark.parametrize("units", [None, (454.0, 17.0)])
@pytest.mark.parametrize(
    ("output", "returned", "variance"),
    [
        ("mean-logvar", "a variance", 1e-3),
        ("mean-logvar", "a standard deviation", 1e-4),
        ("mean-logvar", "the logarithm of a standard deviation", 1e-5),
        ("mean-variance", "a standard deviation", 1e-4),
        ("mean-variance", "a log-variance", 200.0),
    ],
)
def test_another_reading_that_fits_is_named(
    output: str, returned: str, variance: float, units: tuple[float, float] | None
) -> None:
    member, moments, y = answers(output, returned, variance, units)
    with refused(f"said to return {output}", f"read as {returned}, ", "teachers.output"):
        check_spread(member, moments, y)  # type: ignore[arg-type]


@pytest.mark.parametrize("output", SAID)
@pytest.mark.parametrize("misjudged", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("variance", [1e-4, 1.0, 300.0])
def test_members_that_misjudge_themselves_are_let_through(output: str, misjudged: float, variance: float) -> None:
    member, moments, y = answers(output, SAID[output], variance, None)
    moments[:, 1] += np.log(misjudged)  # type: ignore[index]
    check_spread(member, moments, y)  # type: ignore[arg-type]


def test_few_rows_and_a_stated_variance_of_one_tell_nothing() -> None:
    member, moments, y = answers("mean-logvar", "a variance", 1e-3, None)
    check_spread(member, moments[:10], y[:10])  # type: ignore[arg-type, index]
    check_spread(Member("m", "0" * 64, "mean", variance=1.0), moments, y)  # type: ignore[arg-type]
    far = np.stack([np.ones(40), np.full(40, np.log(1e-9))], axis=1)
    check_spread(Member("m", "0" * 64, "mean", variance=1e-9), far, np.zeros(40))


@pytest.mark.parametrize(
    ("units", "stated", "true", "told"),
    [
        ((454.0, 17.0), 0.1, 28.9, ("divided by its standard deviation, 17, ", "here 28.9")),
        (None, 0.1, 28.9, ("divided by its standard deviation, 1", "here 2")),
        (None, 45.0, 2025.0, ("read as a standard deviation, ", "here 2025")),
        (None, 28.9, 28.9, ()),
        ((454.0, 17.0), 28.9 * 10, 28.9, ()),
        (None, 28.9 * 40, 28.9, ()),  # far off, but no other reading fits
    ],
)
def test_a_stated_variance_in_another_unit_is_refused(
    units: tuple[float, float] | None, stated: float, true: float, told: tuple[str, ...]
) -> None:
    y = 454 + 17 * RNG.normal(size=400)
    moments = np.stack([y + np.sqrt(true) * RNG.normal(size=400), np.full(400, np.log(stated))], axis=1)
    member = Member("m", "0" * 64, "mean", units=units, variance=stated)
    with refused(f"have the variance {stated:g}", *told, "teachers.variance") if told else nullcontext():
        check_spread(member, moments, y)


def test_the_pass_refuses_such_a_member(tmp_path: Path) -> None:
    folder = tiny_regression.make_folder(
        tmp_path / "f",
        rows={"train": 40, "validation": 40},
        units=(tiny_regression.LEVEL, tiny_regression.SPREAD * 20),
    )
    units = {"mean": tiny_regression.LEVEL, "std": tiny_regression.SPREAD * 20}
    told = {"teachers.standardized": units, "teachers.model-kwargs": {"variance": True}}
    with refused("said to return mean-logvar", "read as a variance"):
        cache_logits(load_settings(folder / "edistill.toml", told))


def read(train: NDArray[Any], **others: NDArray[Any]) -> None:
    """As targets of splits are read, and a task is found in them."""
    splits: Any = {
        name: SimpleNamespace(labels=as_targets(y, len(y), name), classes=None)
        for name, y in {"train": train, **others}.items()
    }
    Regression.found(splits, {"m": 2 if train.ndim == 1 else 2 * train.shape[1]}, None)


def test_targets_that_float32_cannot_tell_apart_are_refused() -> None:
    far, near = 1.7e9 + 100.0 * np.arange(10), 454 + 0.005 * np.arange(10)
    with refused("data.train lies about 1.7", "varies by", "Take a constant off"):
        read(far)
    with refused("data.train, target 1, lies about 1.7", "varies by"):
        read(np.stack([near, far], 1))
    read(far - 1.7e9)
    read(near)
    read(np.full(3, 1e9))
    np.testing.assert_allclose(as_targets(near, 10, "y"), near, rtol=1e-6)


def test_a_split_that_is_not_learned_may_be_small_or_narrow() -> None:
    train = RNG.normal(293, 3, 40)
    for narrow in ([293.15, 293.16], [293.15, 293.15003], 293.15 + 1e-5 * RNG.normal(size=200)):
        read(train, validation=np.array(narrow))
    read(np.array([293.15, 293.16]))


@pytest.mark.parametrize("method", ["kd", "hydra", "batch-ensemble"])
def test_a_temperature_is_for_classes(tmp_path: Path, method: str) -> None:
    folder = tiny_regression.make_folder(tmp_path / "f", rows={"train": 40})
    with refused("method.temperature is 2.0", "leave it at 1"):
        train(load_settings(folder / "edistill.toml", {"train.method": method, "method.temperature": 2}))
