"""The best sub-ensembles, against a loop over all of them by scipy."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from ensemble_distill.evaluation import subensembles
from ensemble_distill.evaluation.subensembles import SubEnsembles
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.predictive.protocol import Average

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N, M, K = 150, 7, 4
WEIGHTS = np.array([3.0, 1.0, 2.0, 5.0, 1.0, 1.0, 2.0])


def classes(seed: int, members: int = M) -> tuple[Floats, Ints]:
    """Logits (N, M, K) of members that err in ways of their own, and labels (N,)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, N)
    logits = 2 * np.eye(K)[y][:, None] + rng.uniform(0.5, 3, (1, members, 1)) * rng.normal(size=(N, members, K))
    return logits, y


def nll_of_classes(logits: Floats, y: Ints, some: tuple[int, ...], weights: Floats, average: Average) -> float:
    w = weights[list(some)] / weights[list(some)].sum()
    log_p = log_softmax(logits[:, some], axis=-1)
    if average == "probabilities":
        pooled = logsumexp(log_p, axis=1, b=w[:, None])
    else:
        pooled = log_softmax((w[:, None] * log_p).sum(1), axis=-1)
    return float(-pooled[np.arange(len(y)), y].mean())


def search(logits: Floats, y: Ints, weights: Floats | None = None, average: Average = "probabilities") -> SubEnsembles:
    """The search over these rows, which come in batches."""
    found = SubEnsembles()
    pooling = None if weights is None else torch.tensor(weights)
    for start in range(0, N, 64):
        batch = torch.tensor(logits[start : start + 64])
        found.add(Categorical(batch, pooling, average), torch.tensor(y[start : start + 64]))
    return found


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_classifiers_is_the_loops(seed: int, weights: Floats | None, average: Average) -> None:
    logits, y = classes(seed)
    w = np.ones(M) if weights is None else weights
    found = search(logits, y, weights, average)
    for size in (1, 2, 3, 4):
        tried = {some: nll_of_classes(logits, y, some, w, average) for some in itertools.combinations(range(M), size)}
        assert found.best(size) == min(tried, key=tried.__getitem__)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_the_best_of_regressors_is_the_loops(weights: Floats | None) -> None:
    rng = np.random.default_rng(0)
    y = 400 + 10 * rng.normal(size=N)
    mean = y[:, None] + rng.uniform(0.5, 3, (1, M)) * rng.normal(size=(N, M))
    variance = rng.uniform(0.5, 4, (N, M))
    pooling = None if weights is None else torch.tensor(weights)
    found = SubEnsembles()
    for rows in (slice(0, 100), slice(100, None)):
        found.add(
            Gaussian(torch.tensor(mean[rows]), torch.tensor(np.log(variance[rows])), pooling), torch.tensor(y[rows])
        )
    w = np.ones(M) if weights is None else weights
    density = norm(mean, np.sqrt(variance)).pdf(y[:, None])
    for size in (2, 3):
        tried = {
            some: -np.log(density[:, some] @ w[list(some)] / w[list(some)].sum()).mean()
            for some in itertools.combinations(range(M), size)
        }
        assert found.best(size) == min(tried, key=tried.__getitem__)


def test_two_bad_members_that_complete_each_other_are_found() -> None:
    """Not the two that are best alone: each of these knows one half of the rows only."""
    y = np.zeros(N, np.int64)
    logits = np.zeros((N, 4, 2))
    logits[:, 0, 0] = logits[:, 1, 0] = 1.5  # p = .82 everywhere
    for member, half in ((2, 0), (3, 1)):
        logits[:, member, 0] = np.where(np.arange(N) % 2 == half, 30, -3)  # p = 1 or .05
    found = SubEnsembles()
    found.add(Categorical(torch.tensor(logits)), torch.tensor(y))
    assert found.best(1) in ((0,), (1,))
    assert found.best(2) == (0, 1)
    found = SubEnsembles()
    logits[:, :2, 0] = 0.05  # p = .512, while the other two have .524 together
    found.add(Categorical(torch.tensor(logits)), torch.tensor(y))
    assert found.best(1) in ((0,), (1,))
    assert found.best(2) == (2, 3)


def test_certain_mistakes_are_not_the_best() -> None:
    logits = np.zeros((N, 4, 2))
    logits[:, :2, 1] = 5e3  # e^-5000 is no number of float64
    logits[0, 2:] = logits[0, :1]  # a row on which everyone fails
    found = SubEnsembles()
    found.add(Categorical(torch.tensor(logits)), torch.tensor(np.zeros(N, np.int64)))
    assert found.best(2) == (2, 3)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_where_all_are_too_many_the_best_of_one_fewer_is_extended(
    average: Average, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, y = classes(0, members=9)
    ones = np.ones(9)
    pairs = {some: nll_of_classes(logits, y, some, ones, average) for some in itertools.combinations(range(9), 2)}
    pair = min(pairs, key=pairs.__getitem__)
    found = search(logits, y, average=average)
    monkeypatch.setattr(
        subensembles, "LIMIT", 36 * N * (1 if average == "probabilities" else K)
    )  # all pairs, no triples
    assert found.best(2) == pair
    triples = {
        tuple(sorted((*pair, m))): nll_of_classes(logits, y, (*pair, m), ones, average)
        for m in range(9)
        if m not in pair
    }
    assert found.best(3) == min(triples, key=triples.__getitem__)
    monkeypatch.setattr(subensembles, "LIMIT", 0)
    (alone,) = found.best(1) or ()
    chained = found.best(2)
    assert chained is not None
    assert alone in chained


def test_an_ensemble_is_no_part_of_itself() -> None:
    logits, y = classes(0)
    for members in (1, 2, 3):
        found = search(logits[:, :members], y)
        assert [found.best(size) is None for size in (1, 2, 3)] == [size >= members for size in (1, 2, 3)]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_members_of_weight_0_are_left_out(average: Average) -> None:
    logits, y = classes(1)
    weights = np.array([0.0, 1.0, 0.0, 2.0, 1.0, 0.0, 0.0])
    found = search(logits, y, weights, average)
    best = found.best(2)
    assert best is not None
    assert set(best) <= {1, 3, 4}
    tried = {some: nll_of_classes(logits, y, some, weights, average) for some in itertools.combinations((1, 3, 4), 2)}
    assert best == min(tried, key=tried.__getitem__)
    assert found.best(3) is None
