"""How many members a model is worth: the ladder against a loop over subsets in NumPy, and reading from it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ensemble_distill.evaluation import ladder
from ensemble_distill.evaluation.choosing import Choice
from ensemble_distill.evaluation.ladder import Climb, drawn
from ensemble_distill.evaluation.measured import Measured
from ensemble_distill.evaluation.worth import Worth, is_beyond, rung, scaled_l1, worth
from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.answered import those_who_answer
from ensemble_distill.predictive.protocol import Family

Floats = NDArray[np.float64]
ROWS, MEMBERS, CLASSES = 40, 5, 4
WEIGHTS = np.array([0.4, 0.3, 0.0, 0.2, 0.1])


def climbed(family: Family, raw: Floats, y: Any, weights: Floats | None, average: Any = "probabilities") -> Any:
    """The ladder of all members, from batches of rows as `evaluate` gives them."""
    pooled = tuple(range(raw.shape[1])) if weights is None else tuple(np.flatnonzero(weights).tolist())
    climb = Climb(pooled, len(raw), raw[0, 0].size)
    of = None if weights is None else torch.tensor(weights)
    for start in range(0, len(raw), 16):
        rows = slice(start, start + 16)
        said, own = torch.tensor(raw[rows]), of
        if np.isnan(raw).any():
            said, own = those_who_answer(said, of)
        said = family.predictive(said, own, average)
        climb.add(said, None if y is None else torch.tensor(y[rows]))
    return climb.ladder()


def by_size(of: Any, members: Any, weights: Floats) -> list[float]:
    """The mean of `of(some, shares)` over all sub-ensembles, for each size."""
    found = []
    for size in range(1, len(members) + 1):
        each = [of(list(some), weights[list(some)] / weights[list(some)].sum()) for some in combinations(members, size)]
        found.append(float(np.mean(each)))
    return found


def l1(theirs: Floats, ensemble: Floats) -> float:
    scaled = theirs * ensemble.mean() / theirs.mean() if theirs.mean() > 0 else theirs
    return float(np.abs(scaled - ensemble).mean() / ensemble.mean())


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_classes(average: str, weights: Floats | None) -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(scale=2, size=(ROWS, MEMBERS, CLASSES)), rng.integers(0, CLASSES, ROWS)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    w = np.full(MEMBERS, 0.2) if weights is None else weights
    there = np.flatnonzero(w)

    def pooled(some: Any, s: Floats) -> Floats:
        if average == "probabilities":
            return np.einsum("m,nmk->nk", s, p[:, some])
        q = np.exp(np.einsum("m,nmk->nk", s, np.log(p[:, some])))
        return q / q.sum(-1, keepdims=True)

    def model(some: Any, s: Floats) -> Floats:
        mean = np.einsum("m,nmk->nk", s, p[:, some])
        return -(mean * np.log(mean)).sum(-1) + np.einsum("m,nmk->n", s, p[:, some] * np.log(p[:, some]))

    whole, own = pooled(there, w[there]), model(there, w[there])
    found = climbed(open_family("categorical"), z, y, weights, average)
    nll = by_size(lambda some, s: -np.log(pooled(some, s)[np.arange(ROWS), y]).mean(), there, w)
    kl = by_size(lambda some, s: (whole * np.log(whole / pooled(some, s))).sum(-1).mean(), there, w)
    np.testing.assert_allclose(found.nll, nll, rtol=1e-9)
    np.testing.assert_allclose(found.mean_kl, kl, rtol=1e-7, atol=1e-12)
    apart = by_size(lambda some, s: 1.0 if len(some) == 1 else l1(model(some, s), own), there, w)
    np.testing.assert_allclose(found.model_uncertainty_l1, apart, rtol=1e-5, atol=1e-5)
    assert found.nll[-1] < found.nll[0]
    assert found.model_uncertainty_l1[0] == 1


def test_numbers() -> None:
    rng = np.random.default_rng(1)
    mean, log_variance = 454 + rng.normal(size=(ROWS, MEMBERS)), rng.normal(-1, 0.3, (ROWS, MEMBERS))
    y = 454 + rng.normal(size=ROWS)
    density = np.exp(-0.5 * (y[:, None] - mean) ** 2 / np.exp(log_variance)) / np.sqrt(2 * np.pi * np.exp(log_variance))

    def moments(some: Any) -> tuple[Floats, Floats]:
        return mean[:, some].mean(1), np.exp(log_variance[:, some]).mean(1) + mean[:, some].var(1)

    def kl(some: Any, _: Floats) -> float:
        (m, v), (n, w) = moments(range(MEMBERS)), moments(some)
        return float((0.5 * (np.log(w / v) + (v + (m - n) ** 2) / w - 1)).mean())

    equal = np.full(MEMBERS, 1 / MEMBERS)
    found = climbed(open_family("gaussian"), np.stack([mean, log_variance], -1), y, None)
    nll = by_size(lambda some, _: -np.log(density[:, some].mean(1)).mean(), range(MEMBERS), equal)
    np.testing.assert_allclose(found.nll, nll, rtol=1e-9)
    np.testing.assert_allclose(found.mean_kl, by_size(kl, range(MEMBERS), equal), rtol=1e-6, atol=1e-12)
    own = mean.var(1)
    apart = by_size(lambda some, _: 1.0 if len(some) == 1 else l1(mean[:, some].var(1), own), range(MEMBERS), equal)
    np.testing.assert_allclose(found.model_uncertainty_l1, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "width", "y"),
    [
        ("bernoulli", 3, np.random.default_rng(2).integers(0, 2, (ROWS, 3))),
        ("gaussian-vector", 4, np.random.default_rng(2).normal(size=(ROWS, 2))),
    ],
)
def test_several_answers_are_what_the_family_says_of_each_subset(family: str, width: int, y: Any) -> None:
    made = open_family(family, **({"unit": (1.5, 0.5)} if family == "gaussian-vector" else {}))
    raw = np.random.default_rng(3).normal(size=(ROWS, MEMBERS, width))
    found = climbed(made, raw, y, None)
    whole = made.predictive(torch.tensor(raw), None, "probabilities")

    def part(some: Any) -> Any:
        return made.predictive(torch.tensor(raw[:, some]), None, "probabilities")

    equal = np.full(MEMBERS, 1 / MEMBERS)
    nll = by_size(lambda some, _: float(part(some).pooled_nll(torch.tensor(y)).mean()), range(MEMBERS), equal)
    kl = by_size(lambda some, _: float(whole.pooled().kl(part(some).pooled()).mean()), range(MEMBERS), equal)
    own = whole.summary().model.numpy()
    apart = by_size(
        lambda some, _: 1.0 if len(some) == 1 else l1(part(some).summary().model.numpy(), own), range(MEMBERS), equal
    )
    np.testing.assert_allclose(found.nll, nll, rtol=1e-9)
    np.testing.assert_allclose(found.mean_kl, kl, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.model_uncertainty_l1, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
def test_sub_ensembles_are_the_same_however_many_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, partial: bool
) -> None:
    rng = np.random.default_rng(4)
    z, y = rng.normal(scale=2, size=(ROWS, MEMBERS, CLASSES)), rng.integers(0, CLASSES, ROWS)
    if partial:
        silent = rng.random((ROWS, MEMBERS)) < 0.4
        silent[:, 0] = False
        z[silent] = np.nan
    whole = climbed(open_family("categorical"), z, y, WEIGHTS)
    monkeypatch.setattr(ladder, "AT_ONCE", 3 * 16 * CLASSES)  # three of a batch
    for name, values in climbed(open_family("categorical"), z, y, WEIGHTS).to_json().items():
        np.testing.assert_allclose(values, getattr(whole, name), rtol=1e-9, atol=1e-12)


def test_of_many_rows_evenly_spread_ones_are_kept_for_the_ladder_of_uncertainty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    z, y = rng.normal(scale=2, size=(ROWS, MEMBERS, CLASSES)), rng.integers(0, CLASSES, ROWS)
    whole, every_third = (climbed(open_family("categorical"), some, y[: len(some)], None) for some in (z, z[::3]))
    monkeypatch.setattr(ladder, "KEPT", (2**MEMBERS - 1) * ROWS // 3 + 1)  # of batches of 16, whose starts are not
    found = climbed(open_family("categorical"), z, y, None)
    assert found.model_uncertainty_l1 == pytest.approx(every_third.model_uncertainty_l1)
    assert found.model_uncertainty_l1 != pytest.approx(whole.model_uncertainty_l1)
    assert (found.nll, found.mean_kl) == (whole.nll, whole.mean_kl)


def test_without_labels_or_disagreement_there_is_no_ladder_of_it() -> None:
    z = np.random.default_rng(0).normal(size=(ROWS, 1, CLASSES)).repeat(3, axis=1)
    found = climbed(open_family("categorical"), z, None, None)
    assert found.nll is None
    assert found.model_uncertainty_l1 is None
    assert found.mean_kl == pytest.approx([0, 0, 0], abs=1e-12)


def test_of_many_sub_ensembles_some_are_drawn_each_once_and_the_same_again() -> None:
    assert len(drawn(tuple(range(5)), 2, 60)) == 10
    some = drawn(tuple(range(3, 33)), 7, 60)
    assert len(set(some)) == 60
    assert some == drawn(tuple(range(3, 33)), 7, 60)
    assert all(len(set(one)) == 7 and set(one) <= set(range(3, 33)) for one in some)


STEPS = [1.0, 0.5, 0.4, 0.4, 0.3]


@pytest.mark.parametrize(
    ("figure", "members"),
    [(1.1, 0), (1.0, 1), (0.75, 1.5), (0.5, 2), (0.45, 2.5), (0.4, 3), (0.35, 4.5), (0.3, 5), (0.1, 5)],
)
def test_where_a_figure_lies(figure: float, members: float) -> None:
    assert rung(figure, STEPS) == pytest.approx(members)
    assert is_beyond(figure, STEPS) == (figure < 0.3)


def test_figures_and_steps_without_bounds() -> None:
    assert rung(math.nan, STEPS) is None
    assert rung(math.inf, STEPS) == 0
    assert rung(0.6, [math.inf, 0.5]) == 1
    assert rung(0.5, [math.inf, 0.5]) == 2
    assert rung(0.45, [math.inf, 0.5, 0.4]) == pytest.approx(2.5)
    assert rung(math.inf, [math.inf, 0.5]) == 1


def test_a_ladder_that_turns_is_read_as_the_nearest_that_never_rises() -> None:
    assert rung(0.45, [1.0, 0.4, 0.5, 0.3]) == pytest.approx(2)
    assert rung(0.375, [1.0, 0.4, 0.5, 0.3]) == pytest.approx(3.5)
    assert rung(0.35, [1.0, 0.3, 0.4]) == 3  # better than all is no less than all of them
    assert rung(0.5, [math.inf, 0.4, math.inf, 0.6, 0.4]) == pytest.approx(4.5)


def test_a_copy_of_an_ensemble_of_many_is_worth_all_of_it_and_one_a_little_worse_most_of_it() -> None:
    rng, members = np.random.default_rng(2), 30
    y = rng.integers(CLASSES, size=300)
    z = rng.normal(size=(300, 1, CLASSES)) + 0.4 * rng.normal(size=(300, members, CLASSES))
    z[np.arange(300), :, y] += 3
    steps = climbed(open_family("categorical"), z, y, None).nll
    assert np.diff(steps).max() > 0  # sub-ensembles are drawn
    assert rung(steps[-1], steps) == members
    better = (min(steps) + steps[-1]) / 2 - 2e-6
    assert rung(better, steps) == members
    assert is_beyond(better, steps)
    little_worse = float(np.mean(steps[-6:-1]))
    assert next(k for k, step in enumerate(steps, start=1) if step <= little_worse) < 0.6 * members
    assert rung(little_worse, steps) > 0.7 * members


def test_a_sub_ensemble_is_worth_about_its_size_and_a_copy_of_the_ensemble_all_of_it() -> None:
    rng = np.random.default_rng(4)
    z, y = rng.normal(scale=2, size=(400, MEMBERS, CLASSES)), rng.integers(0, CLASSES, 400)
    ladder = climbed(open_family("categorical"), z, y, None)
    family = open_family("categorical")
    whole = family.predictive(torch.tensor(z), None, "probabilities")

    def rows(some: Any) -> dict[str, Any]:
        part = family.predictive(torch.tensor(z[:, some]), None, "probabilities")
        summary, nll = part.summary(), part.pooled_nll(torch.tensor(y))
        found = {"nll": nll, "total_uncertainty": summary.total, "model_uncertainty": summary.model}
        return {name: value.numpy() for name, value in found.items()}

    costs = {"parameters": 30, "macs": 30, "latency_ms": 0.5}, {"parameters": 10, "macs": 10, "latency_ms": 0.2}
    found = worth(ladder, rows(range(MEMBERS)), rows(range(MEMBERS)), 0.0, *costs)
    assert (found.prediction, found.fidelity) == (MEMBERS, MEMBERS)
    assert found.uncertainty == pytest.approx(MEMBERS, abs=1e-3)
    assert found.uncertainty_control is not None
    assert found.uncertainty_control < MEMBERS
    assert found.beyond == ()
    assert found.cost == {"latency": 2.5, "macs": 3, "parameters": 3}
    assert found.falls_short == []
    kl = float(whole.pooled().kl(family.predictive(torch.tensor(z[:, :3]), None, "probabilities").pooled()).mean())
    three = worth(ladder, rows(range(MEMBERS)), rows([0, 1, 2]), kl, costs[0] | {"latency_ms": 0.95}, costs[1])
    assert three.prediction == pytest.approx(3, abs=0.8)
    assert three.fidelity == pytest.approx(3, abs=0.8)
    assert three.uncertainty == pytest.approx(3, abs=0.8)
    assert three.falls_short == ["prediction", "uncertainty"]
    all_heads, some_heads = rows([3]), rows([0, 1, 2])
    some = worth(ladder, rows(range(MEMBERS)), all_heads, kl, *costs, compared=some_heads)
    assert (some.uncertainty, some.uncertainty_control) == (three.uncertainty, three.uncertainty_control)
    assert some.prediction == worth(ladder, rows(range(MEMBERS)), all_heads, kl, *costs).prediction
    beyond = replace(three, beyond=("prediction",), cost={"latency": 13.0, "macs": None, "parameters": None})
    assert beyond.falls_short == ["uncertainty"], "it is better than all members: nobody knows how many it is worth"


def test_a_single_head_has_no_worth_in_uncertainty_but_its_total_does() -> None:
    rng = np.random.default_rng(5)
    ladder = climbed(open_family("categorical"), rng.normal(size=(ROWS, 3, CLASSES)), None, None)
    ensemble = {"model_uncertainty": rng.random(ROWS)}
    found = worth(ladder, ensemble, {"total_uncertainty": rng.random(ROWS)}, 0.01, None, None)
    assert (found.prediction, found.uncertainty, found.cost) == (None, None, None)
    assert found.uncertainty_control is not None


def test_what_is_wrong_once_the_mean_is_right() -> None:
    assert scaled_l1(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == 0
    assert scaled_l1(np.array([1.0, 1.0]), np.array([1.0, 3.0])) == pytest.approx(0.5)
    assert scaled_l1(np.zeros(2), np.array([1.0, 3.0])) == 1


@pytest.mark.parametrize(
    ("worths", "instead"),
    [
        ((5.0, 2.3, 0.0, 0.0), None),  # the student falls short in uncertainty, and the best two are worth less still
        ((5.0, 2.3, 0.0, 2.6), ("a", "c")),
        ((1.5, 2.3, 2.0, 0.0), ("a", "c")),  # it falls short in both, and they are better in one
        ((5.0, 2.3, 3.0, None), ("a", "c")),  # what they are worth in uncertainty is unknown
        ((5.0, 2.5, 3.0, 3.0), None),  # it does not fall short
    ],
)
def test_members_that_are_worth_fewer_than_the_student_are_not_named_in_its_place(
    worths: tuple[float | None, ...], instead: tuple[str, ...] | None
) -> None:
    prediction, uncertainty, theirs, their_uncertainty = worths
    cost = {"latency": 2.4, "macs": None, "parameters": None}
    student = Worth(prediction, None, uncertainty, None, (), cost)
    best = Worth(theirs, None, their_uncertainty, None, (), None)
    search = SimpleNamespace(best=lambda size: (0, 2) if size == 2 else None)
    measured: Any = SimpleNamespace(choice=Choice({"best-2": (0, 2), "best-3": None}, search), members=("a", "b", "c"))  # type: ignore[arg-type]
    assert Measured._instead(measured, {"student": student, "best-2": best, "best-3": None}) == instead
