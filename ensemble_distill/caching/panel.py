"""The members as the caching pass asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensemble_distill.facts import Member
from ensemble_distill.runtime.progress import Progress


@dataclass(frozen=True)
class Panel:
    """The members as they are asked: all of a batch of rows, which `workers` loader processes bring.

    Attributes:
        members, modules: their facts in order, and each one's module by its name, on `device`.
    """

    members: Sequence[Member]
    modules: Mapping[str, nn.Module]
    batch_size: int
    device: torch.device
    workers: int
    progress: Progress
