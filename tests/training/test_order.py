"""The order of rows and views: a pure function of (seed, step) that ranks share without overlap."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ensemble_distill.methods.method import Stage
from ensemble_distill.runtime.ranks import Rank, current
from ensemble_distill.training.order import Every, Index, Order, Steps, afforded

ROWS = st.integers(1, 60)
VIEWS = st.integers(1, 5)
BATCH = st.integers(1, 9)
SEED = st.integers(0, 2**40)


def epoch(order: Order, number: int) -> list[Index]:
    steps = order.steps_per_epoch
    return [index for step in range(number * steps, (number + 1) * steps) for index in order.batch(step)]


@given(ROWS, VIEWS, BATCH, SEED)
def test_every_row_comes_once_an_epoch_but_for_the_last_incomplete_batch(
    rows: int, views: int, batch: int, seed: int
) -> None:
    order = Order(rows, views, batch, seed)
    for number in range(2):
        seen = [row for row, _ in epoch(order, number)]
        assert len(seen) == len(set(seen)) == (rows if rows < batch else rows - rows % batch)
        assert set(seen) <= set(range(rows))


@given(ROWS, VIEWS, SEED)
def test_a_row_goes_through_all_its_views_in_as_many_epochs(rows: int, views: int, seed: int) -> None:
    order = Order(rows, views, 1, seed)
    for start in (0, 3):
        seen = Counter(index for number in range(start, start + views) for index in epoch(order, number))
        assert seen == Counter({(row, view): 1 for row in range(rows) for view in range(views)})


def test_an_epoch_mixes_its_views() -> None:
    counts = Counter(view for _, view in epoch(Order(4000, 4, 100, 0), 0))
    assert min(counts.values()) > 900, counts
    neighbors = dict(epoch(Order(4000, 4, 100, 0), 0))
    same = np.mean([neighbors[row] == neighbors[row + 1] for row in range(3999)])
    assert same < 0.4, "neighboring rows are often alike, and should not share their view"


@given(st.integers(7, 60), VIEWS, st.integers(3, 7), SEED, st.integers(2, 3))
def test_ranks_share_out_the_batch_of_one(rows: int, views: int, batch: int, seed: int, world: int) -> None:
    alone = Order(rows, views, batch, seed)
    ranks = [Order(rows, views, batch, seed, Rank(index, world)) for index in range(world)]
    assert {order.steps_per_epoch for order in ranks} == {alone.steps_per_epoch}
    for step in range(2 * alone.steps_per_epoch + 1):
        parts = [order.batch(step) for order in ranks]
        assert [index for part in parts for index in part] == alone.batch(step)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert sum(map(len, parts)) == len({index for part in parts for index in part}), "two ranks share a row"


@given(ROWS, VIEWS, BATCH, SEED, st.integers(0, 30), st.integers(0, 30))
def test_a_step_is_the_same_wherever_one_starts(
    rows: int, views: int, batch: int, seed: int, start: int, more: int
) -> None:
    whole = list(Steps(Order(rows, views, batch, seed), 0, start + more))
    steps = Steps(Order(rows, views, batch, seed), start, start + more)
    assert list(steps) == whole[start:]
    assert len(steps) == more
    assert Order(rows, views, batch, seed).batch(start + more) == Order(rows, views, batch, seed).batch(start + more)


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [tuple(row for row, _ in epoch(Order(50, 1, 1, seed), number)) for seed in (0, 1) for number in (0, 1)]
    assert len(set(orders)) == 4


def test_first_rows_are_uniform() -> None:
    firsts = Counter(Order(5, 1, 1, seed).batch(0)[0][0] for seed in range(2000))
    # 400 of each expected, with a standard deviation of 18
    assert set(firsts) == set(range(5))
    assert max(abs(count - 400) for count in firsts.values()) < 90, firsts


def test_ranks_are_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert current() == Rank(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert current() == Rank(1, 3)


@given(ROWS, VIEWS, BATCH, SEED)
def test_every_row_comes_in_every_view_once(rows: int, views: int, batch: int, seed: int) -> None:
    every = Every(Order(rows, views, batch, seed), limit=rows * views)
    found = [index for indices in every for index in indices]
    assert sorted(found) == list(itertools.product(range(rows), range(views)))
    assert len(found) == every.count
    assert max(map(len, every)) <= batch
    assert list(Every(Order(rows, views, batch, seed + 1), rows * views)) == list(
        every
    )  # the seed shuffles nothing here


@given(ROWS, VIEWS, st.integers(1, 200))
def test_some_of_the_rows_are_evenly_spread(rows: int, views: int, limit: int) -> None:
    every = Every(Order(rows, views, 4, 0), limit)
    found = [index for indices in every for index in indices]
    assert len(set(found)) == len(found) == every.count <= max(limit, 1)
    assert every.count > limit / 2 or every.count == rows * views
    if 2 <= limit < rows:
        gaps = np.diff(sorted(row for row, _ in found))
        assert gaps.max() - gaps.min() <= 1


def test_of_few_steps_optional_stages_are_left_out() -> None:
    def nothing(*_: object) -> Tensor:
        return torch.zeros(())

    first = Stage("first", 0.25, lambda student: student, nothing, optional=True)
    second, third = (Stage(name, share, lambda student: student, nothing) for name, share in (("b", 0.25), ("c", 0.5)))
    assert afforded((first, second, third), 3) == (first, second, third)
    assert [(s.name, s.share) for s in afforded((first, second, third), 2)] == [("b", 0.5), ("c", 0.5)]
    assert afforded((second, third), 1) == (second, third)  # which is refused
