"""Heads whose output layer is the body's embedding: tied weights (Press and Wolf 2017, arXiv:1608.05859)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.students.heads import BatchedLinear


class TiedHeads(nn.Module):
    """`count` heads that share the matrix (K, F) of an embedding; each has its own bias and hidden layers.

    Features (B, F) to (B, count, K).

    Args:
        embedding: the body's, which keeps its weights: they do not belong to these heads.
        hidden: sizes of each head's own layers, with ReLU in between; the last one is F.
    """

    def __init__(self, count: int, features: int, hidden: Sequence[int], embedding: nn.Module) -> None:
        super().__init__()
        sizes = [features, *hidden]
        self.layers = nn.ModuleList(BatchedLinear(count, i, o) for i, o in itertools.pairwise(sizes))
        self._tied = (embedding,)  # in a tuple, so that it is not a submodule: its weights are counted and saved once
        self.bias = nn.Parameter(torch.zeros(count, self._matrix.shape[0]))
        self._sizes = tuple(sizes)

    @property
    def count(self) -> int:
        return int(self.bias.shape[0])

    @property
    def _matrix(self) -> Tensor:
        weight = self._tied[0].weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def last(self) -> BatchedLinear:
        """Raises EdistillError: the output layer belongs to the body, and cannot be solved for or shared."""
        raise EdistillError(
            "student.tied makes the output layer the body's embedding, which is not to be solved for, or taken from a "
            "teacher. Leave method.closed-form and head in student.share out, or leave student.tied out."
        )

    def hidden(self, x: Tensor) -> Tensor:
        """The input of the output layer: (B, F) for all heads, or (B, count, F)."""
        for layer in self.layers:
            x = layer(x).relu()
        return x

    def forward(self, x: Tensor) -> Tensor:
        seen = self.hidden(x)
        if seen.dim() == 2:
            return (seen @ self._matrix.T).unsqueeze(1) + self.bias
        # a single matrix product: for a batched one, torch's exporter takes the number of rows for a constant
        each = seen.reshape(-1, seen.shape[-1]) @ self._matrix.T
        return each.view(-1, *self.bias.shape) + self.bias

    @torch.no_grad()
    def copied(self, count: int) -> TiedHeads:
        """`count` copies of head 0."""
        heads = TiedHeads(count, self._sizes[0], self._sizes[1:], self._tied[0]).to(self.bias)
        for mine, theirs in zip(self.parameters(), heads.parameters(), strict=True):
            theirs.copy_(mine[:1].expand_as(theirs))
        return heads


def tied_to(body: nn.Module, name: str, features: int, hidden: Sequence[int], outputs: int) -> TiedHeads:
    """One head that is tied to the module of that name.

    Raises:
        EdistillError: the body has no such module, or its matrix has another shape.
    """
    last = hidden[-1] if hidden else features
    wanted, matrices = (outputs, last), _matrices(body)
    if matrices.get(name) != wanted:
        there = [key for key, shape in matrices.items() if shape == wanted]
        is_it = f"is {matrices[name]}" if name in matrices else "has no such matrix"
        remedy = f"Name one of {first_few(there)}." if there else "Leave it out, or let student.heads end as wide."
        raise EdistillError(
            f"student.tied is {name!r}, which {is_it} in the body, and an output layer is {wanted}: {outputs} outputs "
            f"of {last} features. {remedy}"
        )
    return TiedHeads(1, features, hidden, body.get_submodule(name))


def _matrices(body: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a body's modules, by name."""
    weights = {name: getattr(module, "weight", None) for name, module in body.named_modules()}
    return {name: tuple(weight.shape) for name, weight in weights.items() if isinstance(weight, Tensor)}
