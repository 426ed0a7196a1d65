"""Pick the answer of a member that returns several tensors in a tuple, a mapping or an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.parts import Part, Steps, parts
from ensemble_distill.tasks.checks.remedies import remedy
from ensemble_distill.teachers.answering import Answering


class Picked(nn.Module):
    """Wraps a module to return the one output that `steps` lead to."""

    def __init__(self, own: nn.Module, steps: Steps) -> None:
        super().__init__()
        self.own, self.steps = own, steps

    def forward(self, x: Tensor) -> Any:
        found = self.own(x)
        for attribute, key in self.steps:
            found = getattr(found, key) if attribute else found[key]
        return found


def pick(asked: Answering, several: Any, one: Any, rows: int, count: int | None) -> Part:
    """The tensor that is plainly the answer.

    The task decides among the tensors that have one row for each row of the input.

    Args:
        several, one: what the member returns for `rows` rows, and for the first row alone. A tensor belongs to the rows
            if its length is their number both times.
        count: number of the data's classes or targets; None if unknown.

    Raises:
        EdistillError: several tensors could be the answer, or none.
    """
    member = asked.member
    alone = {part.path: part for part in parts(one)}
    there = [part for part in parts(several) if part.path in alone]
    by_row = [p for p in there if _is_by_row(p.tensor, rows) and _is_by_row(alone[p.path].tensor, 1)]
    fitting = asked.task.candidates(by_row, member, rows, count)
    if len(fitting) == 1:
        return cast(Part, fitting[0])
    if fitting:
        raise _undecided(member, several, fitting, rows)
    raise _unfit(asked, several, there, rows)


def _is_by_row(tensor: Tensor, rows: int) -> bool:
    return tensor.dim() in (1, 2) and len(tensor) == rows and tensor.is_floating_point()


def _undecided(member: Member, whole: Any, fitting: Sequence[Part], rows: int) -> EdistillError:
    listed = " and ".join(part.said for part in fitting)
    others = " or ".join(f"out{part.path}" for part in fitting[1:])
    return EdistillError(
        f"Member {member.name} returns a {type(whole).__name__} with {listed} for {rows} rows, and each could be its "
        f"{member.output}. {remedy(member, f'out{fitting[0].path}', others)}"
    )


def _unfit(asked: Answering, whole: Any, there: Sequence[Part], rows: int) -> EdistillError:
    listed = ", ".join(part.said for part in there) or "no tensor in it"
    member = asked.member
    what = "(rows, classes)" if asked.task.one_class else member.output
    maps = [part for part in there if part.tensor.dim() > 2 and len(part.tensor) == rows]
    return EdistillError(
        f"Member {member.name} returns a {type(whole).__name__} ({listed}) for {rows} rows, and none of it is {what}. "
        + (remedy(member, f"out{maps[0].path}.flatten(1)") if maps else "Let its module return that (teachers.model).")
    )
