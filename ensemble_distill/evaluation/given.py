"""The inputs of an evaluation, as the command has opened them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ensemble_distill.cache.reader import Cache
from ensemble_distill.data.source import Source
from ensemble_distill.runs.trust import Trust
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.teachers.answering import Answering


@dataclass(frozen=True)
class Given:
    """What is needed to evaluate runs of one ensemble.

    Attributes:
        splits: the configured splits by name. Each is opened on first access, which raises EdistillError if it cannot
            be opened. Labels index the runs' classes.
        cache: the members' cached outputs; None if there is no cache.
        members: opens the members, in the runs' order; raises EdistillError if one is missing.
        at_hand: whether there are members to open; a run can be evaluated from its cache alone.
        device, workers: the device to compute on, and the number of processes that read rows.
        trusted: the code that may make the runs' bodies.
        progress: where to report progress.
    """

    splits: Mapping[str, Source]
    cache: Cache | None
    members: Callable[[], Sequence[Answering]]
    at_hand: bool
    device: torch.device
    workers: int
    trusted: Trust
    progress: Progress
