"""The members as the caching pass asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ensemble_distill.facts import Member
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.teachers.answering import Answering, Inputs
from ensemble_distill.teachers.together import Together


@dataclass(frozen=True)
class Asking:
    """How members are asked, and their answers kept.

    Attributes:
        dtype: of the records; see `Format`.
        batch_size: how many rows at once.
        device: where they answer.
        workers: loader processes that bring the rows.
        tries_workers: whether nobody has said how many, so that a trial does.
        records, samples: `cache.records` and `cache.samples` of the settings.
        forecast: whether how long a pass will take is told; of a chain's the chain does so.
        check_labels: whether a member whose answers contradict the labels is refused, or else only told of.
        decoded: whether decoded pictures are stored first, and read from there; see `decoding`.
        drawn: how many ids a position are drawn of each split whose records hold no others; see `storing`.
    """

    dtype: str
    batch_size: int
    device: torch.device
    workers: int
    progress: Progress
    records: Literal["auto", "dense", "sampled"] = "auto"
    samples: int = 12
    forecast: bool = True
    check_labels: bool = True
    decoded: bool = False
    tries_workers: bool = False
    drawn: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """The members, opened, and how they are asked.

    Attributes:
        together: some of them that are asked in one batch.
        named: what tells them from others in the progress, where they are a group of those there are.
    """

    members: Sequence[Answering]
    asking: Asking
    together: Sequence[Together] = ()
    named: str = ""

    @property
    def facts(self) -> list[Member]:
        return [asked.member for asked in self.members]

    @property
    def by_name(self) -> dict[str, Answering]:
        return {asked.member.name: asked for asked in self.members}

    @property
    def batch_by_name(self) -> dict[str, Together]:
        """Of members that are asked in one batch, that."""
        return {name: batch for batch in self.together for name in batch.names}


def wanted(members: Sequence[Answering]) -> list[Inputs]:
    """The different inputs that members want; some may want none."""
    return list(dict.fromkeys(asked.wants for asked in members if asked.wants is not None))
