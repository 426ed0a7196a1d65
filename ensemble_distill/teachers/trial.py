"""Try a member on a few rows: choose its answer among its outputs, and check that it depends on the row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.own_row import Answers, Change, Scale, find_change, find_later_change
from ensemble_distill.runtime.parts import Steps
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.network import Network
from ensemble_distill.teachers.picking import Picked, pick

# the code of a Monte-Carlo member: in its factory's module, in place of dropout, and for each of its checkpoints
MASK = 'self.register_buffer("mask", torch.ones(width))'
MASKED = "x * self.mask.view(-1, *[1] * (x.dim() - 2))"  # of features (B, F) and of pictures' channels (B, C, H, W)
DRAWN = "(torch.rand(width) > p) / (1 - p)"
MONTE_CARLO = (
    "A Monte-Carlo member is given as several, each with a mask that stays: in its module's __init__ "
    f"{MASK}, in its forward {MASKED} in place of dropout, and one checkpoint a mask, which holds {DRAWN} under that "
    "buffer's name beside the weights."
)

Kept = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Few:
    """A few rows of a split as a member wants them.

    Attributes:
        split, rows: which rows they are.
        x: their inputs (B, …); None for a member that wants none.
    """

    split: str
    rows: Sequence[int]
    x: Tensor | None


def tried(asked: Answering, few: Few, count: int | None) -> tuple[Answering, str | None]:
    """Try a member on a few rows. If a network returns several tensors, one is chosen as its answer.

    Args:
        asked: the member.
        few: the rows.
        count: number of the data's classes or targets; None if unknown.

    Returns:
        The member as it is to be asked from now on, and what to tell the user; None for nothing.

    Raises:
        EdistillError: the member fails; its output is not plainly an answer; all numbers are between 0 and 1, as those
            of sigmoids; or its answer to a row does not follow from that row alone.
    """
    if few.x is None:
        asked.answers(few.split, few.rows, None)
        return asked, asked.remark
    if not isinstance(asked, Network):
        first = asked.answers(few.split, few.rows, few.x)
        _refuse_dependent(asked, few, first, lambda x: asked.answers(few.split, few.rows[: len(x)], x))
        return asked, asked.remark
    network, returned, told = _settled(asked, few, few.x, count)
    where = f"on {few.split}"
    raw = network.joined(returned, len(few.rows), where)
    network.task.refuse_unlikely(raw, network.member, few.split, few.rows)
    first = network.checked(raw, few.split, few.rows)
    _refuse_dependent(network, few, first, lambda x: network.said(x, few.split, few.rows[: len(x)], where))
    return network, told


def _settled(network: Network, few: Few, x: Tensor, count: int | None) -> tuple[Network, Any, str | None]:
    """The network reduced to its answer, its output for the rows, and what to tell of the choice."""
    member, task, where = network.member, network.task, f"on {few.split}"
    returned = network.returned(x, where)
    if isinstance(returned, Tensor) or task.is_joined(returned, len(x), member):
        return network, returned, None
    part = pick(network, returned, network.returned(x[:1], where), len(x), count)
    said = f"a {type(returned).__name__}, of which {part.said} is taken as its {member.output}"
    return picked(network, part.steps), part.tensor, f"Member {member.name} returns {said}."


def picked(network: Network, steps: Steps) -> Network:
    """The network reduced to the output that `steps` lead to."""
    return Network(network.task, network.member, Picked(network.module, steps).eval())


def as_tried(found: Answering) -> Callable[[Answering], Answering]:
    """A function that applies the choice of `tried`, which returned `found`, to the member opened again."""
    steps = found.module.steps if isinstance(found, Network) and isinstance(found.module, Picked) else None

    def again(asked: Answering) -> Answering:
        return picked(asked, steps) if steps is not None and isinstance(asked, Network) else asked

    return again


def _refuse_dependent(
    asked: Answering, few: Few, first: NDArray[np.float32], ask: Callable[[Tensor], NDArray[np.float32]]
) -> None:
    """Raise EdistillError if a member asked again contradicts its `first` answers: they depend on more than the row."""
    assert few.x is not None
    scale = _scale(asked, first)
    change = find_change(lambda x: _compared(asked, ask(x)), few.x, lambda _: scale, _compared(asked, first))
    if change is not None:
        raise _dependent(change, _number(asked, change, first), asked.member, few.split, few.rows[change.row])


def refuse_other_answers(asked: Answering, few: Few, said: NDArray[np.float32], batch_size: int, kept: Kept) -> None:
    """Refuse a member whose answers to some rows differ from those that a pass over all rows has kept.

    Args:
        asked: the member.
        few: the rows.
        said: (B, W), the answers that the pass has kept.
        batch_size: number of rows per batch in the pass.
        kept: what a record keeps of outputs (B, W): float16 ends at 65,504 below the greatest.

    Raises:
        CacheError: the member answers differently now.
    """
    now = kept(asked.answers(few.split, few.rows, few.x))
    there = np.flatnonzero(~np.isnan(said.reshape(len(said), -1)).all(1))  # a row of NaN is not answered
    if not len(there):
        return
    few, said, now = Few(few.split, [few.rows[at] for at in there.tolist()], None), said[there], now[there]
    change = find_later_change(_compared(asked, said), _compared(asked, now), _scale(asked, said))
    if change is not None:
        at = f"row {few.rows[change.row]} of {few.split}"
        raise CacheError(
            f"Member {asked.member.name} says {_number(asked, change, said)} at {at} in "
            f"the pass and, {change.told}. In the pass it is asked about {batch_size} rows at once, and then about "
            f"{len(few.rows)}. It is not a function of its row: it keeps a state that changes with each call, or "
            "depends on the number of rows; or the data has other rows each time. Fix that, and run edistill "
            "cache-logits again."
        )


def _compared(asked: Answering, answers: NDArray[np.float32]) -> Answers:
    """Answers (B, W) without what carries no meaning; see `Task.compared`."""
    return asked.task.compared(answers.astype(np.float64))


def _scale(asked: Answering, answers: NDArray[np.float32]) -> Scale:
    rounding = asked.fineness * asked.task.magnitude(answers.astype(np.float64))
    return Scale(*asked.task.apart(_compared(asked, answers), rounding))


def _number(asked: Answering, change: Change, answers: NDArray[np.float32]) -> str:
    """The number that changed as the member first said it, in words."""
    return asked.task.number_told(change.output, change.first, answers.shape[1])


def _dependent(change: Change, first: str, member: Member, split: str, row: int) -> EdistillError:
    said = (
        f"Member {member.name} says {first} at row {row} of {split} and, {change.told}. It is not a function "
        "of its row: it "
    )
    if change.random:
        return EdistillError(
            f"{said}draws random numbers, as F.dropout(x) does without training=self.training, or keeps a state. Fix "
            f"that in its module. {MONTE_CARLO}"
        )
    return EdistillError(
        f"{said}depends on the rest of the batch, as BatchNorm does with track_running_stats=False. Build it with "
        "track_running_stats=True, momentum=None; show it training rows once in training mode, and save it again."
    )
