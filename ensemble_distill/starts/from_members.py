"""Heads that start as their members' own last stages."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.starts.bodies import Build, start_from
from ensemble_distill.students.bodies import build_body
from ensemble_distill.students.last_stage import LastStage, LastStageHeads, run_apart
from ensemble_distill.students.per_head import give
from ensemble_distill.students.ridge import Ridge
from ensemble_distill.students.split import Split

RIDGE = 1e-6  # for the adapters' regression, whose many rows need little regularization


class FromMembers:
    """Gives every head its own member's last stage, behind an adapter in closed form.

    An adapter is the least-squares map from the shared trunk's output for a row to the input that the member's own
    layers would give its last stage.
    """

    POSITIONS = 2**19  # maximum rows × positions in the regression
    ROWS = 2**15  # maximum rows in the regression

    def __init__(self, members: Mapping[str, Split]) -> None:
        self.names, self.members = tuple(members), list(members.values())

    def last_stages(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """A copy of each member's last stage, and the module that computes its input from rows; both in eval mode.

        Copies, since the two may share a module, and changing one must not change the other.
        """
        for member in self.members:
            yield copy.deepcopy(member.tail).eval(), nn.Sequential(member.trunk, member.bridge).eval()

    def take_last_stages(self, tails: Sequence[nn.Module]) -> None:
        """Start heads from these last stages instead of the members' own."""
        self.members = [replace(member, tail=tail) for member, tail in zip(self.members, tails, strict=True)]

    def width(self, shape: Sequence[int]) -> int:
        """How many numbers a last stage takes at each position, for rows of that shape."""
        wanted = run_apart(self.members[0].trunk, self.members[0], shape)[1]
        return int(wanted.shape[1 if wanted.dim() == 4 else -1])

    def rows(self, shape: Sequence[int]) -> int:
        """How many rows of that shape the regression uses."""
        wanted = run_apart(self.members[0].trunk, self.members[0], shape)[1]
        positions = wanted[0].numel() // self.width(shape)
        return max(1, min(self.ROWS, self.POSITIONS // positions))

    @torch.no_grad()
    def __call__(self, student: nn.Module, inputs: Iterable[Tensor]) -> float:
        """Set the heads of a student in eval mode, from rows x (B, …) on the student's device.

        Returns:
            R² of the adapters on the first of these batches, the share of the variance of the last stages' inputs that
            they explain. 1 is all of it; NaN if the inputs do not vary.
        """
        heads, body = student.heads, student.body
        assert isinstance(heads, LastStageHeads)
        assert heads.adapters is not None
        assert isinstance(body, nn.Module)
        device = heads.last.weight.device
        paths = [nn.Sequential(member.trunk, member.bridge).to(device).eval() for member in self.members]
        for head, member in enumerate(self.members):
            give(heads.tail, head, member.tail)
        regression = Ridge()
        first: tuple[Tensor, Tensor] | None = None
        for x in inputs:
            columns = heads.adapters.patches(body(x.clone()))  # cloned, since modules may work in place
            wanted = torch.stack([self._by_position(path(x.clone())) for path in paths], dim=1)
            regression.add(columns, wanted)
            first = first or (x, wanted)
        heads.adapters.take(regression, RIDGE)
        assert first is not None
        x, wanted = first
        said = heads.adapters(body(x.clone())).unflatten(0, (len(x), -1))
        said = torch.stack([self._by_position(one) for one in said.unbind(1)], dim=1)
        varied = (wanted - wanted.mean(0)).square().mean()
        return 1 - float((said - wanted).square().mean() / varied) if varied > 0 else math.nan

    @staticmethod
    def _by_position(wanted: Tensor) -> Tensor:
        """Maps (B, C, H, W) or vectors (B, …, C) as (positions, C)."""
        return (wanted.movedim(1, -1) if wanted.dim() == 4 else wanted).flatten(0, -2)


def from_members(
    stage: LastStage, model: str, kwargs: Mapping[str, Any], shape: tuple[int, ...], members: Mapping[str, Build]
) -> FromMembers:
    """The start of every head from its own member's last stage; members are bodies with a classifier.

    Raises:
        EdistillError: a member is no such body, or the adapters' bottleneck is wider than the inputs of all last stages
            together.
    """
    splits = {}
    for name, build in members.items():
        body = build_body(model, kwargs, shape)
        start_from(body, build(), name)
        splits[name] = stage.split(body.eval())
    start = FromMembers(splits)
    width = start.width(shape)
    if stage.rank is not None and stage.rank > len(members) * width:
        raise EdistillError(
            f"student.heads has rank = {stage.rank}, and the last stages of {len(members)} members are given "
            f"{len(members)} × {width} numbers: a bottleneck of more would say nothing more. Give at most "
            f"{len(members) * width}, or leave it out."
        )
    return start
