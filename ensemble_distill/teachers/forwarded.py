"""The base class of members that wrap another member."""

from __future__ import annotations

import torch
from torch import nn

from ensemble_distill.teachers.answering import Answering, Inputs, Rows


class Forwarded:
    """See `Answering`. Passes everything but `answers` on to the wrapped member; a subclass defines `answers`.

    Args:
        asked: the wrapped member.
    """

    def __init__(self, asked: Answering) -> None:
        self.member, self.task, self.fineness = asked.member, asked.task, asked.fineness
        self.module: nn.Module | None = asked.module
        self._asked = asked

    @property
    def wants(self) -> Inputs | None:
        return self._asked.wants

    @property
    def remark(self) -> str | None:
        return self._asked.remark

    def meets(self, split: str, rows: Rows) -> None:
        self._asked.meets(split, rows)

    def to(self, device: torch.device) -> None:
        self._asked.to(device)
