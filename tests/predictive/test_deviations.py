"""The error of deviations, against the divergence that it stands for, and against its formula in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.special import expit, softmax

from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.bernoulli import Bernoulli
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.predictive.protocol import Average

Floats = NDArray[np.float64]
B, M, W = 6, 4, 4
SMALL = 1e-4
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
either = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
averages = pytest.mark.parametrize("average", ["probabilities", "logits"])


def shares(weights: Floats | None) -> Floats:
    return np.full((1, M, 1), 1 / M) if weights is None else weights.reshape(1, M, 1)


def tensors(*values: Floats | None) -> Any:
    return [None if value is None else torch.tensor(value) for value in values]


@either
@pytest.mark.parametrize(
    ("name", "fields"),
    [("categorical", {}), ("bernoulli", {}), ("gaussian", {}), ("gaussian-vector", {"unit": (2.0, 0.5)})],
)
def test_of_small_deviations_it_is_the_divergence(name: str, fields: Any, weights: Floats | None) -> None:
    rng = np.random.default_rng(0)
    width = 2 if name == "gaussian" else W
    about, apart, other = (rng.normal(size=(B, members, width)) for members in (1, M, M))
    apart, other = (each - (shares(weights) * each).sum(1, keepdims=True) for each in (apart, other))
    family = open_family(name, **fields)
    of, mine, theirs = tensors(weights, about + SMALL * apart, about + SMALL * other)
    ensemble, student = (family.predictive(raw, of, "probabilities") for raw in (mine, theirs))
    assert_allclose(ensemble.deviation_error(student) / SMALL**2, ensemble.kl(student) / SMALL**2, rtol=2e-3)


@either
@averages
def test_of_classes_by_its_formula(average: Average, weights: Floats | None) -> None:
    z, other = np.random.default_rng(1).normal(scale=2, size=(2, B, M, W))
    w = (shares(weights) * softmax(z, axis=-1)).sum(1, keepdims=True)  # the mixture, however members are pooled

    def deviations(logits: Floats) -> Floats:
        centered = logits - (w * logits).sum(-1, keepdims=True)
        found: Floats = centered - (shares(weights) * centered).sum(1, keepdims=True)
        return found

    wanted = 0.5 * (w * (deviations(z) - deviations(other)) ** 2).sum(-1)
    of, mine, theirs = tensors(weights, z, other)
    assert_allclose(Categorical(mine, of, average).deviation_error(Categorical(theirs, of, average)), wanted)


@either
@averages
def test_of_labels_by_its_formula(average: Average, weights: Floats | None) -> None:
    z, other = np.random.default_rng(2).normal(scale=2, size=(2, B, M, W))
    w = (shares(weights) * expit(z)).sum(1, keepdims=True)
    d, own = (each - (shares(weights) * each).sum(1, keepdims=True) for each in (z, other))
    of, mine, theirs = tensors(weights, z, other)
    found = Bernoulli(mine, of, average).deviation_error(Bernoulli(theirs, of, average))
    assert_allclose(found, 0.5 * (w * (1 - w) * (d - own) ** 2).sum(-1))


@either
def test_of_numbers_by_its_formula(weights: Floats | None) -> None:
    mean, v, other, own = np.random.default_rng(3).normal(size=(4, B, M, 1))
    apart, wider = (
        (a - (shares(weights) * a).sum(1, keepdims=True)) - (b - (shares(weights) * b).sum(1, keepdims=True))
        for a, b in ((mean, other), (v, own))
    )
    wanted = 0.5 * apart**2 / (shares(weights) * np.exp(v)).sum(1, keepdims=True) + 0.25 * wider**2
    of, *numbers = tensors(weights, *(each[..., 0] for each in (mean, v, other, own)))
    ensemble, student = Gaussian(numbers[0], numbers[1], of), Gaussian(numbers[2], numbers[3], of)
    assert_allclose(ensemble.deviation_error(student), wanted[..., 0])
