"""Sums of products of three vectors, against matrices, loops and NumPy's least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ensemble_distill.students.canonical import decompose, product


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lost(tensor: Tensor, rank: int, sweeps: int) -> float:
    return float((tensor - product(*decompose(tensor, rank, sweeps))).square().sum())


def test_the_product_is_a_sum_over_its_channels() -> None:
    factors = [drawn(size, 2, seed=size) for size in (3, 4, 5)]
    wanted = np.zeros((3, 4, 5))
    for i, j, k, r in np.ndindex(3, 4, 5, 2):
        wanted[i, j, k] += factors[0][i, r] * factors[1][j, r] * factors[2][k, r]
    assert_close(product(*factors).numpy(), wanted)


@pytest.mark.thorough
def test_of_a_matrix_it_loses_what_eckart_and_young_say() -> None:
    for rank in [1, 3]:
        for shape in [(6, 8, 1), (1, 6, 8), (8, 1, 6)]:
            tensor = drawn(*shape)
            spectrum = torch.linalg.svdvals(tensor.squeeze()).square()
            assert lost(tensor, rank, 300) == pytest.approx(float(spectrum[rank:].sum()), rel=1e-4)


def test_a_tensor_that_is_such_a_product_is_found_again() -> None:
    tensor = product(drawn(9, 3, seed=1), drawn(7, 3, seed=2), drawn(5, 3, seed=3))
    assert lost(tensor, 3, 300) < 1e-8 * float(tensor.square().sum())


def test_more_channels_and_more_sweeps_lose_less() -> None:
    tensor = drawn(8, 9, 5)
    by_rank = [lost(tensor, rank, 60) for rank in (2, 6, 12, 24)]
    assert by_rank == sorted(by_rank, reverse=True)
    by_sweep = [lost(tensor, 6, sweeps) for sweeps in (1, 2, 5, 20, 100)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(by_sweep))


@pytest.mark.thorough
def test_where_it_ends_no_factor_can_be_better_given_the_others() -> None:
    tensor = drawn(6, 7, 4)
    first, second, third = decompose(tensor, 5, 2000)
    products = np.stack([np.outer(second[:, r], third[:, r]).ravel() for r in range(5)], axis=1)
    wanted = np.linalg.lstsq(products, tensor.flatten(1).T.numpy(), rcond=None)[0].T
    assert_close(first.numpy(), wanted, rtol=0, atol=1e-3)


@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 9), st.sampled_from((0.0, 1e-6, 1e6)))
def test_sizes_are_spread_evenly_and_whatever_comes_is_finite(
    shape: tuple[int, int, int], rank: int, scale: float
) -> None:
    tensor = drawn(*shape) * scale
    factors = decompose(tensor, rank, 10)
    assert [tuple(factor.shape) for factor in factors] == [(size, rank) for size in shape]
    sizes = torch.stack([factor.norm(dim=0) for factor in factors])
    assert torch.isfinite(sizes).all()
    assert_close(sizes, sizes.mean(0).expand(3, -1), rtol=1e-6, atol=1e-12)
    assert float((tensor - product(*factors)).square().sum()) <= float(tensor.square().sum()) * (1 + 1e-9) + 1e-20
