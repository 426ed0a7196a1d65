"""The members as the caching pass asks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ensemble_distill.facts import Member
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.teachers.answering import Answering, Inputs


@dataclass(frozen=True)
class Asking:
    """How members are asked, and their answers kept.

    Attributes:
        dtype: of the records; see `Format`.
        batch_size: how many rows at once.
        device: where they answer.
        workers: loader processes that bring the rows.
    """

    dtype: str
    batch_size: int
    device: torch.device
    workers: int
    progress: Progress


@dataclass(frozen=True)
class Panel:
    """The members, opened, and how they are asked."""

    members: Sequence[Answering]
    asking: Asking

    @property
    def facts(self) -> list[Member]:
        return [asked.member for asked in self.members]

    @property
    def by_name(self) -> dict[str, Answering]:
        return {asked.member.name: asked for asked in self.members}


def wanted(members: Sequence[Answering]) -> list[Inputs]:
    """The different inputs that members want; some may want none."""
    return list(dict.fromkeys(asked.wants for asked in members if asked.wants is not None))
