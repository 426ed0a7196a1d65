"""Telling rows from elsewhere: AUROC as the share of pairs in order."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ensemble_distill.evaluation.ood import detection

Floats = NDArray[np.float64]


def auroc_loop(inside: Floats, outside: Floats) -> float:
    """The share of pairs in which the outside row scores higher, ties counting half."""
    pairs = [(a, b) for a, b in itertools.product(inside, outside)]
    return sum(1.0 if b > a else 0.5 if b == a else 0.0 for a, b in pairs) / len(pairs)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(1)
    inside = {name: np.round(rng.gamma(2, 1, 60), 1) for name in ("total_uncertainty", "model_uncertainty")}
    outside = {name: np.round(rng.gamma(3, 1, 40), 1) for name in inside}  # scores above 1, with ties
    found = detection(inside, outside)
    assert found.keys() == inside.keys()
    for name, value in found.items():
        assert value == pytest.approx(auroc_loop(inside[name], outside[name]))
        assert 0.5 < auroc_loop(inside[name], outside[name]) < 1


def test_auroc_of_members_is_the_mean_of_each_ones_own() -> None:
    rng = np.random.default_rng(2)
    inside, outside = (
        {"total_uncertainty": rng.random((50, 3))},
        {"total_uncertainty": rng.random((30, 3)) + np.array([0, 0.3, 5])},
    )
    found = detection(inside, outside)
    own = [auroc_loop(inside["total_uncertainty"][:, m], outside["total_uncertainty"][:, m]) for m in range(3)]
    assert found["total_uncertainty"] == pytest.approx(np.mean(own))
    assert own[2] == 1
    assert found["model_uncertainty"] is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    inside=arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 5).map(float)),
    outside=arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 5).map(float)),
)
def test_auroc_mirrors(inside: Floats, outside: Floats) -> None:
    def area(a: Floats, b: Floats) -> float:
        found = detection({"total_uncertainty": a}, {"total_uncertainty": b})["total_uncertainty"]
        assert found is not None
        return found

    assert area(inside, outside) == pytest.approx(auroc_loop(inside, outside))
    assert area(inside, outside) + area(outside, inside) == pytest.approx(1)
    assert area(inside, inside) == pytest.approx(0.5)
