"""Asking a module as a member, whatever it is of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.facts import Member
from ensemble_distill.tasks import open_task
from ensemble_distill.teachers import trial
from ensemble_distill.teachers.network import Network


def network(module: nn.Module, member: Member) -> Network:
    task = next(task for task in map(open_task, ("classification", "regression")) if member.output in task.outputs)
    return Network(task, member, module)


def tried(
    module: nn.Module, x: Tensor, member: Member, split: str, rows: Sequence[int], count: int | None
) -> tuple[nn.Module | None, str | None]:
    """The module that is asked from now on, and what is told of it."""
    asked, told = trial.tried(network(module, member), trial.Few(split, rows, x), count)
    return asked.module, told


def forward(module: nn.Module, x: Tensor, member: Member, where: str) -> Tensor:
    """The raw output (B, ·)."""
    asked = network(module, member)
    return asked.joined(asked.returned(x, where), len(x), where)


def to_outputs(raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """A raw output as the cache holds it."""
    return network(nn.Identity(), member).checked(raw, split, rows)
