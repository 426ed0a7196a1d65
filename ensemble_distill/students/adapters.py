"""Adapters: linear maps from shared features to the input of each member's own last stage, one per head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemble_distill.students.ridge import Ridge

KERNEL = 3  # kernel size between feature maps: a neighborhood tells more than a single position


class Adapters(nn.Module):
    """`count` linear maps side by side: shared features to (B·count, …), the heads of a row side by side.

    Features (B, C, H, W) are mapped by a convolution, and (B, …, C) along their last dimension. With a rank, all heads
    read one bottleneck of that many channels, which contains the spatial part of the convolution, and each head has
    only a small matrix of its own.

    Attributes:
        shared: the bottleneck, (rank, in, 3, 3) or (rank, in); None without one.
        own: (count, out, rank or in, …).
        bias: (count, out).
    """

    shared: nn.Parameter | None

    def __init__(
        self, count: int, inputs: int, outputs: int, maps: bool, stride: int = 1, rank: int | None = None
    ) -> None:
        """Create maps with random weights.

        Args:
            maps: whether features are (B, C, H, W).
            stride: factor by which the output maps are smaller.
        """
        super().__init__()
        kernel = (KERNEL, KERNEL) if maps else ()
        self.maps, self.stride = maps, stride
        self.shared = None if rank is None else nn.Parameter(torch.empty(rank, inputs, *kernel))
        inner = (inputs, *kernel) if rank is None else (rank, *(1,) * len(kernel))
        self.own = nn.Parameter(torch.empty(count, outputs, *inner))
        self.bias = nn.Parameter(torch.zeros(count, outputs))
        for weight, fan in ((self.shared, inputs * math.prod(kernel)), (self.own, math.prod(inner))):
            if weight is not None:
                nn.init.uniform_(weight, -1 / math.sqrt(fan), 1 / math.sqrt(fan))

    @property
    def count(self) -> int:
        return int(self.own.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        if self.shared is not None:
            x = self._map(x, self.shared, None, self.stride)
        stride = self.stride if self.shared is None else 1
        y = self._map(x, self.own.flatten(0, 1), self.bias.flatten(), stride)
        if self.maps:
            return y.reshape(-1, y.shape[1] // self.count, *y.shape[2:])
        each = y.view(*y.shape[:-1], self.count, y.shape[-1] // self.count)
        return each.movedim(-2, 1).flatten(0, 1)

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        if self.maps:
            return functional.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)
        return functional.linear(x, weight, bias)

    def copied(self, count: int) -> Adapters:
        """`count` copies of the first map."""
        rank = None if self.shared is None else len(self.shared)
        inputs = self.own.shape[2] if self.shared is None else self.shared.shape[1]
        other = Adapters(count, inputs, self.own.shape[1], self.maps, self.stride, rank).to(self.own)
        with torch.no_grad():
            if self.shared is not None and other.shared is not None:
                other.shared.copy_(self.shared)
            other.own.copy_(self.own[:1].expand_as(other.own))
            other.bias.copy_(self.bias[:1].expand_as(other.bias))
        return other

    def patches(self, x: Tensor) -> Tensor:
        """What a map sees at each position of the features, (positions, in): the columns of its regression."""
        if not self.maps:
            return x.flatten(0, -2)
        columns = functional.unfold(x, KERNEL, padding=KERNEL // 2, stride=self.stride)
        return columns.transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def take(self, regression: Ridge, ridge: float) -> None:
        """Set the maps to the solution of a regression from `patches` to the inputs of the members' last stages."""
        if self.shared is None:
            weight, bias = regression.solve(ridge)  # (count, in, out)
        else:
            shared, weight, bias = regression.reduced(ridge, len(self.shared))
            self.shared.copy_(shared.T.reshape(self.shared.shape))
        self.own.copy_(weight.transpose(1, 2).reshape(self.own.shape))
        self.bias.copy_(bias)
