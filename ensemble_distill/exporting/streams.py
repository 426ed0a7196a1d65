"""A recurrent student as a graph for streams: its state is an input beside the tokens, and an output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ensemble_distill.errors import quoted
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.serving.ends import NEW_STATE, STATE
from ensemble_distill.students.positions import said
from ensemble_distill.students.student import Student

BEGUN = 1e-5  # largest difference in the features between no state and a state of zeros


@dataclass(frozen=True)
class State:
    """The state of a recurrent body.

    Attributes:
        tensors: of two streams, all zeros, as a stream begins.
        axes: the axis of the streams in each tensor.
        nested: the structure in which the body holds them.
    """

    tensors: tuple[Tensor, ...]
    axes: tuple[int, ...]
    nested: TreeSpec


@torch.no_grad()
def state_of(body: nn.Module, length: int) -> State | str | None:
    """The state of a body that returns one with its features and takes one with its ids.

    Returns None if the body returns no state, or the reason why a stream cannot use it.

    Args:
        length: a number of ids that the body takes.
    """
    returned = [_returned(body, rows, length) for rows in (2, 3)]
    if not all(isinstance(each, tuple | list) and len(each) == 2 for each in returned):
        return None
    longer = _returned(body, 2, length + 1)
    if longer is None:
        return f"it takes {length} tokens, and fails on {length + 1}"
    (two, nested), (three, _), (later, _) = (tree_flatten(each[1]) for each in (*returned, longer))
    if not two or not all(isinstance(t, Tensor) and t.dtype == torch.float32 for t in two):
        return "its state is not of float32 tensors alone"
    if [t.shape for t in two] != [t.shape for t in later]:
        return "its state grows with the stream"
    axes = [
        [at for at, (a, b) in enumerate(zip(p.shape, q.shape, strict=True)) if a != b]
        for p, q in zip(two, three, strict=True)
    ]
    if any(len(axis) != 1 for axis in axes):
        return "its state has no axis along which streams lie"
    tensors = tuple(torch.zeros_like(t) for t in two)
    ids = torch.zeros(2, length, dtype=torch.int64)
    try:
        begun = said(body(ids, tree_unflatten(list(tensors), nested)))
    except Exception as error:  # the body can be any code, and may take no state
        return f"it does not take the state that it returns: {quoted(error)}"
    if not torch.allclose(begun, said(returned[0]), atol=BEGUN):
        return "it does not begin with zeros, and streams do"
    return State(tensors, tuple(axis for (axis,) in axes), nested)


def _returned(body: nn.Module, rows: int, length: int) -> Any:
    try:
        return body(torch.zeros(rows, length, dtype=torch.int64))
    except Exception:  # the body may take only one length
        return None


class Stream(nn.Module):
    """Maps ids (B, T) and a state to the raw outputs at all T positions, (B, H, T, W), and the state after them."""

    def __init__(self, student: Student, state: State) -> None:
        super().__init__()
        self.student, self._nested = student, state.nested

    def forward(self, ids: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        made = self.student.body(ids, tree_unflatten(list(states), self._nested))
        return self.student.read(said(made)), tree_flatten(made[1])[0]

    def predictive(self, raw: Tensor) -> Predictive:
        """The predictive distribution of raw outputs."""
        return self.student.predictive(raw)


def state_names(count: int) -> tuple[list[str], list[str]]:
    """The names of the state among the graph's inputs and outputs."""
    return [f"{STATE}{at}" for at in range(count)], [f"{NEW_STATE}{at}" for at in range(count)]
