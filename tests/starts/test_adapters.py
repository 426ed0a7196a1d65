"""Adapters in closed form, against NumPy: the map itself, and the best map of a lower rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny import refused
from torch import nn
from torch.testing import assert_close

from ensemble_distill.students.adapters import Adapters
from ensemble_distill.students.last_stage import LastStage, apart
from ensemble_distill.students.ridge import Ridge

M, C, ROWS = 3, 2, 400


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_the_reduced_map_is_the_best_of_its_rank(rank: int) -> None:
    """Eckart and Young on the fitted values: no map of that rank has less error on these rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 5)) @ rng.normal(size=(5, 5)) + 3
    y = x @ rng.normal(size=(5, M * C)) + rng.normal(size=(ROWS, M * C))
    regression = Ridge()
    for rows in np.split(np.arange(ROWS), [7, 200]):
        regression.add(torch.tensor(x[rows]), torch.tensor(y[rows].reshape(-1, M, C)))
    shared, own, bias = regression.reduced(1e-12, rank)
    assert (shared.shape, own.shape, bias.shape) == ((5, rank), (M, rank, C), (M, C))
    found = torch.einsum("nr,mrc->nmc", torch.tensor(x) @ shared, own) + bias
    centered, target = x - x.mean(0), y - y.mean(0)
    fitted = centered @ np.linalg.lstsq(centered, target, rcond=None)[0]
    u, s, v = np.linalg.svd(fitted, full_matrices=False)
    wanted = (u[:, :rank] * s[:rank]) @ v[:rank] + y.mean(0)
    assert_allclose(found.reshape(ROWS, -1), wanted, atol=1e-6)
    bottleneck = x @ shared.numpy()
    assert_allclose(np.cov(bottleneck.T, bias=True).reshape(rank, rank), np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("shape", "stride"), [((6,), 1), ((5, 6), 1), ((6, 7, 8), 1), ((6, 7, 8), 2)])
def test_adapters_that_exist_are_found_again(shape: tuple[int, ...], rank: int | None, stride: int) -> None:
    maps = len(shape) == 3
    torch.manual_seed(0)
    true, found = (Adapters(M, 6, C, maps, stride, rank).double() for _ in range(2))
    nn.init.normal_(true.bias)
    x = torch.randn(50, *shape, dtype=torch.float64)
    wanted = true(x)
    each = wanted.view(50, M, *wanted.shape[1:])
    regression = Ridge()
    regression.add(true.patches(x), each.movedim(2, -1).movedim(1, -2).flatten(0, -3) if maps else _positions(each))
    found.take(regression, 1e-12)
    assert_close(found(x), wanted, atol=1e-5, rtol=1e-5)
    assert wanted.shape == (50 * M, *((C, -(-7 // stride), -(-8 // stride)) if maps else (*shape[:-1], C)))


def _positions(each: torch.Tensor) -> torch.Tensor:
    """(B, M, …, C) to (B·positions, M, C)."""
    return each.movedim(1, -2).flatten(0, -3)


@pytest.mark.parametrize("rank", [None, 2])
def test_copies_are_of_the_first(rank: int | None) -> None:
    adapters = Adapters(M, 6, C, maps=True, rank=rank)
    x = torch.randn(2, 6, 4, 4)
    first = adapters(x).view(2, M, C, 4, 4)[:, :1]
    wider = adapters.copied(4)
    assert wider.count == 4
    assert_close(wider(x).view(2, 4, C, 4, 4), first.expand(-1, 4, -1, -1, -1))


@pytest.mark.parametrize("rank", [1, 3])
def test_features_that_do_not_vary_are_no_obstacle(rank: int) -> None:
    """Pixels that are always black, far from 0 once normalized, and features that are copies of others."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, 3)
    seen = torch.cat([x, torch.full((ROWS, 40), -7.3), x], 1)
    y = (x @ torch.randn(3, M * C) + 5).view(-1, M, C)
    regression = Ridge()
    for rows in torch.arange(ROWS).split(130):
        regression.add(seen[rows], y[rows])
    shared, own, bias = regression.reduced(1e-6, rank)
    found = torch.einsum("nr,mrc->nmc", seen.double() @ shared, own) + bias
    assert found.isfinite().all()
    if rank == 3:
        assert_close(found.float(), y, atol=1e-2, rtol=0)


def test_adapters_do_not_guess_which_axis_of_a_series_is_its_channels() -> None:
    body = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1), nn.Flatten())
    with refused("(2, 16)", "student.heads.adapt-from"):
        apart(body, LastStage("1", adapt_from="0", adapted=True), (2, 16), 3)
