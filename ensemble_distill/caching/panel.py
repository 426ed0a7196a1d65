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
    """How members are asked, and how their answers are kept.

    Attributes:
        dtype: dtype of the records; see `Format`.
        batch_size: rows per batch.
        device: the device where members answer.
        workers: loader processes that bring the rows.
        tries_workers: whether a trial decides on the number of workers, because no setting does.
        records, samples: `cache.records` and `cache.samples` of the settings.
        forecast: whether to report how long the pass will take; a chain reports its own forecast.
        check_labels: whether to refuse a member whose answers contradict the labels, instead of warning about it. None
            to compare nothing, for a generation of a chain: it learned its classes and units from these very data, and
            if it has hardly learned them, it contradicts them.
        decoded: whether to store decoded images first, and read from there; see `decoding`.
        drawn: ids per position, for splits whose records hold drawn ids only; see `storing`.
    """

    dtype: str
    batch_size: int
    device: torch.device
    workers: int
    progress: Progress
    records: Literal["auto", "dense", "sampled"] = "auto"
    samples: int = 12
    forecast: bool = True
    check_labels: bool | None = True
    decoded: bool = False
    tries_workers: bool = False
    drawn: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """Opened members, and how they are asked.

    Attributes:
        together: batches of members that are asked together.
        named: suffix that tells this group from others in the progress; empty if all members are here.
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
        """The batch of each member that is asked in one."""
        return {name: batch for batch in self.together for name in batch.names}


def wanted(members: Sequence[Answering]) -> list[Inputs]:
    """The different inputs that members want; some members may want none."""
    return list(dict.fromkeys(asked.wants for asked in members if asked.wants is not None))
