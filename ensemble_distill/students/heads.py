"""All heads of a student as one batched network: a linear layer or an MLP per head, in single tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BatchedLinear(nn.Module):
    """`count` linear layers side by side.

    Input (B, in), shared by all, or (B, count, in), one per layer; output (B, count, out).
    """

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(count, outputs))
        bound = 1 / math.sqrt(inputs)  # as in nn.Linear
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        # no einsum: onnxruntime would copy its weights at every call, which takes most of a row's time
        if x.dim() == 2:
            y = (x @ self.weight.transpose(0, 1).flatten(1)).view(-1, *self.bias.shape)
        else:
            y = (x.transpose(0, 1) @ self.weight).transpose(0, 1)
        return y + self.bias


class Heads(nn.Module):
    """`count` heads on shared features (B, F), each an MLP with the given hidden sizes and ReLU in between.

    Hidden sizes [100, 100] and 10 outputs are the [100, 100, 10] of Tran et al. 2020; without hidden sizes a head is
    linear. Output (B, count, outputs).

    Attributes:
        own_body: whether features are (B, count · F), and head m reads only the m-th F of them.
    """

    def __init__(self, count: int, features: int, hidden: Sequence[int], outputs: int, own_body: bool = False) -> None:
        super().__init__()
        self.own_body = own_body
        sizes = [features, *hidden, outputs]
        self.layers = nn.ModuleList(BatchedLinear(count, i, o) for i, o in itertools.pairwise(sizes))

    @property
    def count(self) -> int:
        return int(self._first.weight.shape[0])

    @property
    def _first(self) -> BatchedLinear:
        layer = self.layers[0]
        assert isinstance(layer, BatchedLinear)
        return layer

    @property
    def last(self) -> BatchedLinear:
        """The output layer."""
        layer = self.layers[-1]
        assert isinstance(layer, BatchedLinear)
        return layer

    def hidden(self, x: Tensor) -> Tensor:
        """The input of the last layer: features (B, F), or (B, count, …).

        The latter if heads have bodies or hidden layers of their own.
        """
        if self.own_body:
            x = torch.unflatten(x, 1, (self.count, -1))
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return x

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers[-1](self.hidden(x))
        return outputs

    @torch.no_grad()
    def copied(self, count: int) -> Heads:
        """`count` copies of head 0. They diverge because their targets differ, not by their start."""
        sizes = [layer.weight.shape for layer in self.layers if isinstance(layer, BatchedLinear)]
        heads = Heads(count, sizes[0][1], [size[2] for size in sizes[:-1]], sizes[-1][2], self.own_body)
        heads.to(self._first.weight)
        for mine, theirs in zip(self.parameters(), heads.parameters(), strict=True):
            theirs.copy_(mine[:1].expand_as(theirs))
        return heads
