"""Canonical polyadic decomposition: a three-way tensor as a sum of products of three vectors."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 1e-6  # relative to the normal equations, which are nearly singular if two products nearly agree


def decompose(tensor: Tensor, rank: int, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (I, R), (J, R) and (K, R) of a tensor (I, J, K), by alternating least squares.

    Kolda and Bader 2009, doi:10.1137/07070111X, section 3.4: each factor in turn is solved for, given the other two.
    The error never grows.

    There is no closed form, and the result depends on the start, which is the same random factors every time. Each of
    the R products has its norm spread evenly over its three vectors.

    Args:
        tensor: of float64, on the CPU; it is fastest with the shortest side second.
        rank: R, above 0.
        sweeps: how often all three factors are solved for.
    """
    drawn = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(size, rank, generator=drawn, dtype=tensor.dtype) for size in tensor.shape)
    first, second, third = (factor / factor.norm(dim=0) for factor in (first, second, third))
    turned = tensor.permute(2, 1, 0).contiguous()
    for _ in range(sweeps):
        told = tensor @ third  # (I, J, R), shared by two solves; products of all pairs of vectors are never stored
        first = _solved((told * second).sum(1), second, third, first)
        second = _solved((told * first.unsqueeze(1)).sum(0), first, third, second)
        third = _solved(((turned @ first) * second).sum(1), first, second, third)
        sizes = torch.stack([factor.norm(dim=0) for factor in (first, second, third)])
        even = sizes.prod(0) ** (1 / 3) / sizes.clamp_min(torch.finfo(tensor.dtype).tiny)
        first, second, third = first * even[0], second * even[1], third * even[2]
    return first, second, third


def _solved(told: Tensor, one: Tensor, other: Tensor, current: Tensor) -> Tensor:
    """A factor (I, R), from the product of the tensor with the other two, (I, R).

    Damping keeps it near its current value where the equations are nearly singular.
    """
    gram = (one.T @ one) * (other.T @ other)
    damping = DAMPING * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny ** 0.5
    damped = gram + damping * torch.eye(len(gram), dtype=gram.dtype)
    solved: Tensor = torch.linalg.solve(damped, (told + damping * current).T).T
    return solved


def product(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """The tensor (I, J, K) with factors (I, R), (J, R) and (K, R)."""
    return torch.einsum("ir,jr,kr->ijk", first, second, third)
