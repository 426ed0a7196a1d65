"""Which bodies have a state that a graph for streams can take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ensemble_distill.exporting.streams import State, state_of

LENGTH = 4


class Body(nn.Module):
    """A running sum of ids."""

    def forward(self, ids: Tensor, state: Any = None) -> Any:
        before = self.begun(len(ids)) if state is None else state
        said = before + ids.cumsum(1).float()
        return said.unsqueeze(-1), self.after(said)

    def begun(self, rows: int) -> Tensor:
        return torch.zeros(rows, 1)

    def after(self, said: Tensor) -> Any:
        return said[:, -1:]


class BeginsWithOnes(Body):
    def begun(self, rows: int) -> Tensor:
        return torch.ones(rows, 1)


class KeepsAll(Body):
    def after(self, said: Tensor) -> Any:
        return said.clone()


class KeepsOneOfAll(Body):
    def after(self, said: Tensor) -> Any:
        return said[0, -1:]


class KeepsWholeNumbers(Body):
    def after(self, said: Tensor) -> Any:
        return said[:, -1:].long()


class TakesOneLength(Body):
    def forward(self, ids: Tensor, state: Any = None) -> Any:
        return super().forward(ids.view(-1, LENGTH), state)


class TakesNone(Body):
    def forward(self, ids: Tensor) -> Any:  # type: ignore[override]
        return super().forward(ids)


class ReturnsNone(Body):
    def forward(self, ids: Tensor, state: Any = None) -> Any:
        return super().forward(ids)[0]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (BeginsWithOnes(), "does not begin with zeros"),
        (KeepsAll(), "grows with the stream"),
        (KeepsOneOfAll(), "no axis along which streams lie"),
        (KeepsWholeNumbers(), "not of float32 tensors alone"),
        (TakesOneLength(), "takes 4 tokens, and fails on 5"),
        (TakesNone(), "does not take the state that it returns"),
    ],
)
def test_a_state_that_no_stream_can_go_on_from_is_told_why(body: nn.Module, why: str) -> None:
    found = state_of(body, LENGTH)
    assert isinstance(found, str)
    assert why in found


def test_a_state_is_found_with_the_axis_of_its_streams() -> None:
    found = state_of(Body(), LENGTH)
    assert isinstance(found, State)
    assert (found.axes, [tuple(t.shape) for t in found.tensors]) == ((0,), [(2, 1)])

    class Recurrent(nn.LSTM):
        def forward(self, ids: Tensor, state: Any = None) -> Any:
            return super().forward(ids.unsqueeze(-1).float(), state)

    two = state_of(Recurrent(1, 3, num_layers=2, batch_first=True), LENGTH)
    assert isinstance(two, State)
    assert (two.axes, [tuple(t.shape) for t in two.tensors]) == ((1, 1), [(2, 2, 3)] * 2)
    assert state_of(ReturnsNone(), LENGTH) is None
