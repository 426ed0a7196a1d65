"""Bodies that start as members: which members, and copying their weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ensemble_distill.errors import EdistillError, meant
from ensemble_distill.facts import Named
from ensemble_distill.students.bodies import build_bodies, each

Build = Callable[[], nn.Module]  # builds a member with its weights


def starting_members(init: str | Sequence[str] | None, members: Sequence[str], where: str) -> list[str]:
    """The names of the members that the bodies start from, in the order of `student.init`.

    If all members are named, in the order of the members instead.

    Args:
        members: the names of all members.
        where: the folder they are expected in, for messages.

    Raises:
        EdistillError: a name is no member's, or is given twice.
    """
    if init is None or isinstance(init, str):
        names = [] if init is None else [init]
    else:
        names = [name for pattern in init for name in _matching(members, pattern) or [pattern]]
    for name in names:
        if name not in members:
            there = f"the members are {', '.join(members)}" if members else f"{where} is not there"
            several = f' For all that match, make it a list: ["{name}"].' if init == name and "*" in name else ""
            near = f"{told} " if (told := meant(name, members, "")) else ""
            raise EdistillError(
                f"student.init is {name!r}, and {there}. {near}Name a member that is, or put it back.{several}"
            )
        if names.count(name) > 1:
            raise EdistillError(f"student.init names {name} {names.count(name)} times. Name each member once.")
    if len(names) == len(members):  # head m imitates member m, so body m should be member m
        names.sort(key=list(members).index)
    return names


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match a pattern; a name that contains [brackets] matches itself."""
    names = list(names)
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def started_bodies(
    model: str,
    kwargs: Mapping[str, Any],
    shape: tuple[int, ...],
    members: Mapping[str, Build],
    positions: int | None = None,
    encoding: Named | None = None,
) -> nn.Module:
    """One body per member, with the member's weights, side by side; without members, one body with random weights.

    Raises:
        EdistillError: see `build_body` and `start_from`.
    """
    body = build_bodies(max(1, len(members)), model, kwargs, shape, positions=positions, encoding=encoding)
    for (name, build), one in zip(members.items(), each(body), strict=False):
        start_from(one, build(), name)
    return body


@torch.no_grad()
def start_from(body: nn.Module, member: nn.Module, name: str) -> None:
    """Copy a member's weights, without its classifier, into a body of the same architecture.

    Raises:
        EdistillError: the member lacks a tensor of the body, or has it in another shape.
    """
    theirs = member.state_dict()
    mine = body.state_dict()
    for key, tensor in mine.items():
        if key not in theirs or theirs[key].shape != tensor.shape:
            there = tuple(theirs[key].shape) if key in theirs else "absent"
            raise EdistillError(
                f"student.init is {name!r}, but the body's {key} is {tuple(tensor.shape)} and the member's is {there}. "
                "Give a member of the body's architecture, or leave student.init out."
            )
    body.load_state_dict({key: theirs[key] for key in mine})
