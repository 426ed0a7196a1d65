"""Telling rows from elsewhere: AUROC as the share of pairs in order."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ensemble_distill.evaluation.ood import detection
from ensemble_distill.predictive.categorical import Categorical

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


def test_rounding_of_equal_uncertainties_decides_nothing() -> None:
    """Two of five vote for a class on every row; which two, and in what order they are summed, separates no rows."""
    patterns = np.array([votes for votes in itertools.product([0, 1], repeat=5) if sum(votes) == 2])
    logits = torch.zeros(len(patterns), 5, 2, dtype=torch.float64)
    logits[torch.from_numpy(patterns == 1)] = torch.tensor([3.4761, 0.0], dtype=torch.float64)
    logits[torch.from_numpy(patterns == 0)] = torch.tensor([0.0, 3.4761], dtype=torch.float64)
    said = Categorical(logits).summary()
    rows = {"total_uncertainty": said.total.numpy(), "model_uncertainty": said.model.numpy()}
    assert 0 < max(np.ptp(values) for values in rows.values()) < 1e-14, "they do differ in their last bits"
    last = int(rows["model_uncertainty"].argmax())
    inside = {name: np.delete(values, last) for name, values in rows.items()}
    outside = {name: values[[last]] for name, values in rows.items()}
    assert detection(inside, outside) == {"total_uncertainty": 0.5, "model_uncertainty": 0.5}
    assert detection(inside, {name: values + 1e-9 for name, values in outside.items()})["model_uncertainty"] == 1
    small = {name: 1e-20 * values for name, values in rows.items()}  # of targets in a large unit
    assert detection(small, {name: 2 * values for name, values in small.items()}, 1e-20)["total_uncertainty"] == 1


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
