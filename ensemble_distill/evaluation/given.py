"""What an evaluation is given: values that the command has opened."""

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
    """What runs of one ensemble are evaluated on, and with.

    Attributes:
        splits: the configured splits by name. Each is opened when it is asked for, which raises EdistillError where it
            cannot be. Labels index the runs' classes.
        cache: what the members said, if it was kept.
        members: opens the members themselves, in the runs' order; raises EdistillError where they are not all there.
        at_hand: whether there are any to open: a run is evaluated from its cache alone, too.
        device, workers: what computes, and how many processes read rows.
        trusted: whose code may make the runs' bodies.
        progress: is told what happens.
    """

    splits: Mapping[str, Source]
    cache: Cache | None
    members: Callable[[], Sequence[Answering]]
    at_hand: bool
    device: torch.device
    workers: int
    trusted: Trust
    progress: Progress
