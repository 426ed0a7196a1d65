"""Linear layers in closed form: least squares from features to the targets of all heads, from one Gram matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Solution(NamedTuple):
    """The unrestricted solution of a ridge regression.

    Attributes:
        covariance: of the features, (F, F), with the penalty on its diagonal.
        weight, bias: (F, M·W) and (M·W,); weights are 0 if the features do not vary.
    """

    covariance: Tensor
    weight: Tensor
    bias: Tensor


class Ridge:
    """Ridge regression from features (N, F) to targets (N, M, W), one batch of rows at a time, with a free intercept.

    The weights minimize the mean squared error + `ridge` · v · ‖W‖², where v is the features' mean variance, so that
    `ridge` does not depend on the features' unit.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._gram = self._cross = self._origin = torch.empty(0)
        self._shape: tuple[int, ...] = ()

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add B rows: features (B, F) and targets (B, M, W), both finite."""
        if self.rows == 0:  # relative to this origin, constant features are exactly 0 and leave no rounding
            self._origin = features.mean(0)
        x = torch.cat([features - self._origin, torch.ones_like(features[:, :1])], dim=1)
        y = targets.flatten(1).to(x)
        if self.rows == 0:
            self._shape = tuple(targets.shape[1:])
            self._gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
            self._cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        if x.device.type == "cpu":  # elsewhere float64 is slow or missing, and products round to float32
            x, y = x.double(), y.double()
        self._gram += (x.T @ x).cpu().double()
        self._cross += (x.T @ y).cpu().double()
        self.rows += len(x)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (M, F, W) and biases (M, W), float64 on the CPU.

        Args:
            ridge: above 0.
        """
        _, weight, bias = self.solution(ridge)
        return self._by_member(weight), bias.view(self._shape)

    def reduced(self, ridge: float, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """The solution through a bottleneck that all members share: (F, R), then weights (M, R, W) and biases (M, W).

        Among all maps of that rank, it is the nearest to the unrestricted one on these rows (reduced-rank regression,
        Izenman 1975). The bottleneck's features are uncorrelated, with variance 1, or 0 where nothing varies.

        Args:
            ridge: above 0.
            rank: R, at most F and at most M·W.
        """
        covariance, weight, bias = self.solution(ridge)
        values, vectors = torch.linalg.eigh(covariance)
        # directions without variance are not scaled to 1
        least = max(float(values.max()) * torch.finfo(torch.float64).eps, torch.finfo(torch.float32).tiny)
        values = torch.where(values > least, values, 0)
        seen = (vectors * values.sqrt()).T @ weight  # (F, M·W): its Gram matrix is the predictions' covariance
        directions = torch.linalg.svd(seen, full_matrices=False).U[:, :rank]
        shared = vectors * torch.where(values > 0, values.rsqrt(), 0) @ directions
        own = directions.T @ seen
        bias = bias + self._mean @ (weight - shared @ own)
        return shared, self._by_member(own), bias.view(self._shape)

    @property
    def _mean(self) -> Tensor:
        """The features' mean, (F,)."""
        return self._gram[-1, :-1] / self.rows + self._origin.cpu().double()

    def solution(self, ridge: float) -> Solution:
        """The unrestricted solution for all members at once, float64 on the CPU.

        Args:
            ridge: above 0.
        """
        gram, cross = self._gram / self.rows, self._cross / self.rows
        mean, target = gram[-1, :-1], cross[-1]
        covariance = gram[:-1, :-1] - torch.outer(mean, mean)
        # all that remains of constant features is single-precision rounding, which must not be learned from
        size = gram.diagonal()[:-1].mean() + self._origin.cpu().double().square().mean()
        variance = covariance.diagonal().mean()
        if variance <= 1e-12 * size + torch.finfo(torch.float64).tiny ** 0.5:
            return Solution(torch.zeros_like(covariance), torch.zeros_like(cross[:-1]), target)
        penalized = covariance + ridge * variance * torch.eye(len(mean), dtype=torch.float64)
        weight = torch.linalg.solve(penalized, cross[:-1] - torch.outer(mean, target))
        return Solution(penalized, weight, target - self._mean @ weight)

    def through(self, solution: Solution, ridge: float, shared: Tensor) -> tuple[Tensor, Tensor]:
        """A solution through a given bottleneck (F, R): weights (M, R, W) and biases (M, W).

        Args:
            ridge: the one that the solution was found with.
        """
        covariance, weight, bias = solution
        seen = covariance @ shared
        gram = shared.T @ seen
        least = ridge * gram.diagonal().mean() + torch.finfo(torch.float32).tiny ** 0.5
        own = torch.linalg.solve(gram + least * torch.eye(len(gram), dtype=gram.dtype), seen.T @ weight)
        bias = bias + self._mean @ (weight - shared @ own)
        return self._by_member(own), bias.view(self._shape)

    def _by_member(self, weight: Tensor) -> Tensor:
        return weight.view(len(weight), *self._shape).transpose(0, 1).contiguous()
