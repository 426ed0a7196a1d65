"""A tensor of three sides as a sum of products of three vectors: its canonical polyadic decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 1e-6  # of a step, relative to the normal equations, which products that nearly agree leave all but singular


def decompose(tensor: Tensor, rank: int, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (I, R), (J, R) and (K, R) of a tensor (I, J, K), by alternating least squares (Kolda and Bader 2009,
    doi:10.1137/07070111X, section 3.4): each in turn is solved for, given the others. The error never grows.

    There is no closed form, and where it ends depends on where it begins: at the same random factors every time. Each
    of the R products has its size spread evenly over its three vectors.

    Args:
        tensor: of float64.
        rank: R, above 0.
        sweeps: how often all three are solved for.
    """
    drawn = torch.Generator().manual_seed(0)
    factors = [torch.randn(size, rank, generator=drawn, dtype=tensor.dtype).to(tensor) for size in tensor.shape]
    factors = [factor / factor.norm(dim=0) for factor in factors]
    unfolded = [tensor.movedim(side, 0).flatten(1) for side in range(3)]
    for _ in range(sweeps):
        for side in range(3):
            one, other = (factors[at] for at in range(3) if at != side)
            factors[side] = _solved(unfolded[side], one, other, factors[side])
        sizes = torch.stack([factor.norm(dim=0) for factor in factors])
        even = sizes.prod(0) ** (1 / 3) / sizes.clamp_min(torch.finfo(tensor.dtype).tiny)
        factors = [factor * scale for factor, scale in zip(factors, even, strict=True)]
    first, second, third = factors
    return first, second, third


def _solved(unfolded: Tensor, one: Tensor, other: Tensor, current: Tensor) -> Tensor:
    """The factor of the side that is unfolded (I, J·K), given the two others; it moves only as far as that helps."""
    gram = (one.T @ one) * (other.T @ other)
    products = (one.unsqueeze(1) * other.unsqueeze(0)).flatten(0, 1)  # (J·K, R)
    damping = DAMPING * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny ** 0.5
    damped = gram + damping * torch.eye(len(gram)).to(gram)
    solved: Tensor = torch.linalg.solve(damped, (unfolded @ products + damping * current).T).T
    return solved


def product(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """The tensor (I, J, K) of factors (I, R), (J, R) and (K, R)."""
    return torch.einsum("ir,jr,kr->ijk", first, second, third)
