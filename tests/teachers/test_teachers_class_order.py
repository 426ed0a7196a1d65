"""Class order by names, and the check that refuses shuffled members but never merely weak ones."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from ensemble_distill.errors import EdistillError
from ensemble_distill.tasks.checks import class_order
from ensemble_distill.tasks.checks.class_order import (
    CHANCE,
    KNOWN,
    LEAST_GAIN,
    LEAST_RATIO,
    check_class_order,
    order_by_names,
)

Counts = NDArray[np.int64]

# --- by names -----------------------------------------------------------------------------------------------


@pytest.mark.thorough
@given(st.lists(st.text(min_size=1), min_size=1, max_size=8, unique=True), st.randoms())
def test_outputs_are_mapped_to_the_data_by_name(classes: list[str], random: object) -> None:
    names = list(classes)
    random.shuffle(names)  # type: ignore[attr-defined]
    order = order_by_names("m", names, classes, "names")
    assert (order is None) == (names == classes)
    if order is not None:
        assert [classes[index] for index in order] == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog", "cow"], "names 3 classes, the data has 2 .only there: cow"),
        (["cat", "Dog"], "only there: Dog; only in the data: dog"),
        (["cat"], "only in the data: dog"),
        (["cat", "dog", "cat"], "cat comes twice"),
    ],
)
def test_other_names_than_the_datas_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(EdistillError, match=rf"m: labels.txt.*{message}.*Rename"):
        order_by_names("m", names, ("cat", "dog"), "labels.txt")


# --- by accuracy --------------------------------------------------------------------------------------------


def simulated(seed: int, accuracy: float, rows: NDArray[np.int64], order: NDArray[np.int64] | None = None) -> Counts:
    """(K, K) counts of a member right with this probability, else wrong by each class's habit."""
    rng, count = np.random.default_rng(seed), len(rows)
    habits = rng.dirichlet(np.full(count, 0.5), size=count)
    np.fill_diagonal(habits, 0)
    shares = (1 - accuracy) * habits / habits.sum(1, keepdims=True) + accuracy * np.eye(count)
    counts = np.stack([rng.multinomial(n, share) for n, share in zip(rows, shares, strict=True)])
    return counts if order is None else counts[:, order]


def check(name: str, counts: Counts, classes: Sequence[str] | None = None) -> None:
    """The check of rows that are so counted, label by predicted class."""
    labels, predicted = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1))
    check_class_order(name, labels, predicted, classes)


def refused(counts: Counts) -> bool:
    try:
        check("m", counts)
    except EdistillError:
        return True
    return False


def derangement(seed: int, count: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        if (order != np.arange(count)).all():
            return order


@pytest.mark.parametrize(("classes", "rows"), [(2, 200), (3, 200), (10, 50), (10, 1000), (100, 50)])
def test_shuffled_members_are_refused_and_their_originals_are_not(classes: int, rows: int) -> None:
    for accuracy, seed in itertools.product((0.6, 0.85, 0.95), range(5)):
        counts = np.full(classes, rows)
        assert not refused(simulated(seed, accuracy, counts))
        shuffled = simulated(seed, accuracy, counts, derangement(seed, classes))
        # of two classes told apart 60 to 40, or three, no naming is evidently right
        assert refused(shuffled) == (accuracy > classes**KNOWN)


def test_two_swapped_classes_among_many_are_refused_by_name() -> None:
    order = np.arange(10)
    order[[3, 5]] = 5, 3
    counts = simulated(0, 0.8, np.full(10, 200), order)
    names = [f"class{index}" for index in range(10)]
    with pytest.raises(EdistillError) as error:
        check("member-07", counts, names)
    text = str(error.value)
    right, reordered = np.trace(counts) / 2000, np.trace(counts[:, order]) / 2000
    assert f"{right:.1%} of 2000 rows are right; reordered, {reordered:.1%} would be" in text
    assert "(class3 is called class5, class5 is called class3)" in text
    assert text.startswith("member-07: ")
    assert "label_names in config.json" in text


def test_the_message_names_classes_by_number_where_the_data_has_no_names() -> None:
    with pytest.raises(EdistillError, match="0 is called 1, 1 is called 0"):
        check("m", np.array([[5, 95], [90, 10]]))


def test_natural_for_lexicographic_folders_is_what_gets_caught() -> None:
    names = [f"class{number}" for number in range(1, 13)]
    order = np.array([names.index(name) for name in sorted(names)])
    assert refused(simulated(1, 0.7, np.full(12, 50), np.argsort(order)))


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
def test_members_that_know_almost_nothing_pass(classes: int) -> None:
    for per_class, above_chance, seed in itertools.product((1, 5, 30, 500), (0.0, 0.02, 0.1), range(15)):
        rng = np.random.default_rng(seed)
        prediction = rng.dirichlet(np.full(classes, 0.3))  # the same for every label, often nearly one class
        shares = (1 - above_chance) * prediction + above_chance * np.eye(classes)
        rows = rng.multinomial(per_class * classes, rng.dirichlet(np.full(classes, 0.5)))  # a skewed class mix
        counts = np.stack([rng.multinomial(n, share) for n, share in zip(rows, shares, strict=True)])
        assert not refused(counts), (seed, counts)


@pytest.mark.parametrize("separation", [0.2, 0.6, 1.5])
def test_honest_weak_classifiers_pass(separation: float) -> None:
    """Bayes classifiers of overlapping Gaussians, some of whose classes are confused more often than not."""
    for skewed, seed in itertools.product((False, True), range(8)):
        rng = np.random.default_rng(seed)
        prior = rng.dirichlet(np.full(8, 0.5)) if skewed else np.full(8, 1 / 8)
        centers = separation * rng.normal(size=(8, 2))
        labels = rng.choice(8, size=8000, p=prior)
        points = centers[labels] + rng.normal(size=(8000, 2))
        scores = np.log(prior) - ((points[:, None] - centers) ** 2).sum(-1) / 2
        counts = np.zeros((8, 8), dtype=np.int64)
        np.add.at(counts, (labels, scores.argmax(1)), 1)
        assert not refused(counts), (seed, counts)


def test_classes_without_rows_prove_nothing() -> None:
    # all huskies are called wolf, but there is no wolf that is called something else
    assert not refused(np.array([[5, 95, 0], [0, 0, 0], [0, 0, 100]]))
    assert not refused(np.zeros((3, 3), dtype=np.int64))


def test_a_few_rows_prove_nothing() -> None:
    assert not refused(np.array([[0, 3], [3, 0]]))
    assert refused(np.array([[0, 30], [30, 0]]))


@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 300))
def test_a_diagonal_that_dominates_its_columns_always_passes(seed: int, classes: int, rows: int) -> None:
    counts = np.random.default_rng(seed).multinomial(rows, np.full(classes, 1 / classes), size=classes)
    assume((counts.diagonal() >= counts.max(axis=0)).all())
    check("m", counts)


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_untrained_networks_pass_though_they_do_not_guess(classes: int) -> None:
    """They tell digits apart by their looks, and their outputs are in no order."""
    pixels, labels = load_digits(return_X_y=True)
    told, wrong, networks = 0, 0, 150
    for seed in range(networks):
        rng = np.random.default_rng((classes, seed))
        chosen = rng.choice(10, classes, replace=False)
        rows = np.isin(labels, chosen)
        x, y = pixels[rows] / 8 - 1, np.searchsorted(np.sort(chosen), labels[rows])
        hidden = np.maximum(x @ rng.normal(scale=0.15, size=(64, 200)), 0)
        predicted = (hidden @ rng.normal(scale=0.1, size=(200, classes))).argmax(1)
        try:
            remark = check_class_order("m", y, predicted)
        except EdistillError:
            wrong += 1
        else:
            told += remark is not None
            assert remark is None or remark.startswith("m knows little, or its outputs are in another class order")
    assert wrong <= networks // 50
    assert told >= networks // 50  # or they would not have put the rule to the test


# --- against another way, and of many classes -------------------------------------------------------------------


def misnamed(counts: Counts) -> bool | None:
    """Whether some cycle of the best of all reorderings is evidently misnamed, by going through all of them; None where
    several are best."""
    total = counts.sum(1)
    seen = [index for index in range(len(counts)) if total[index]]
    gains = {
        order: sum(counts[i, j] / total[i] for i, j in zip(seen, order, strict=True))
        for order in itertools.permutations(seen)
    }
    best = max(gains.values(), default=0.0)
    orders = [order for order, gain in gains.items() if gain > best - 1e-9]
    if len(orders) != 1:
        return None
    following, left, found = dict(zip(seen, orders[0], strict=True)), set(seen), False
    while left:
        cycle = [left.pop()]
        while (after := following[cycle[-1]]) != cycle[0]:
            cycle.append(after)
        left -= set(cycle)
        now, then = (
            [counts[i, j] for i, j in zip(cycle, to, strict=True)] for to in (cycle, map(following.get, cycle))
        )
        n = [total[i] for i in cycle]
        shares = [(sum(x / m for x, m in zip(xs, n, strict=True)) / len(n), sum(xs) / sum(n)) for xs in (now, then)]
        risen = all(b - a >= LEAST_GAIN and b >= LEAST_RATIO * a for a, b in zip(*shares, strict=True))
        gain = len(n) * (shares[1][0] - shares[0][0])
        odds = gain**2 / (2 * sum(1 / m for m in n)) >= len(n) * math.log(len(seen)) - math.log(CHANCE)
        columns = [
            (counts[i, j], n_i + counts[:, j].sum())
            for i, j, n_i in zip(cycle, map(following.get, cycle), n, strict=True)
        ]
        known = sum(2 * both / either for both, either in columns) / len(n) >= len(seen) ** KNOWN
        found |= len(cycle) > 1 and risen and odds and known
    return found


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_decisions_are_those_of_going_through_every_reordering(classes: int) -> None:
    told = []
    for seed in range(120):
        rng = np.random.default_rng((classes, seed))
        rows = rng.integers(0, 120, classes) * (rng.random(classes) < 0.8)  # some classes do not occur
        counts = simulated(seed, rng.uniform(0.3, 0.95), rows, rng.permutation(classes) if seed % 2 else None)
        expected = misnamed(counts)
        if expected is not None:
            told.append(expected)
            assert refused(counts) == expected, counts
    assert any(told)
    assert not all(told)


def test_of_very_many_classes_those_are_looked_at_that_are_mostly_called_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(class_order, "LARGEST", 20)
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(300), 60))
    predicted = np.where(rng.random(len(labels)) < 0.8, labels, rng.integers(0, 300, len(labels)))
    assert check_class_order("m", labels, predicted) is None
    order = np.arange(300)
    order[[7, 299]] = 299, 7
    with pytest.raises(EdistillError, match="7 is called 299, 299 is called 7"):
        check_class_order("m", labels, order[predicted])


def test_of_many_classes_only_those_that_occur_cost_anything() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.choice(21_843, 30, replace=False), 5)
    predicted = np.where(rng.random(150) < 0.6, labels, rng.integers(0, 21_843, 150))
    tracemalloc.start()
    check_class_order("m", labels, predicted)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    first, second = np.repeat(21_842, 40), np.repeat(7, 40)
    with pytest.raises(EdistillError, match="7 is called 21842, 21842 is called 7"):
        check_class_order("m", np.concatenate([first, second]), np.concatenate([second, first]))
