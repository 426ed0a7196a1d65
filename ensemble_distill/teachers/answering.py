"""The interface of an opened member: the inputs it wants, and its answers to rows.

Callers do not know whether a network answers, a session of another runtime, or a table of ready-made outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.facts import AnyPreprocessing, Member
from ensemble_distill.tasks import Task

ROUNDING = 1e-5  # share of the largest output; float32 resolves a hundredth of it


def in_view(split: str, view: int) -> str:
    """The split name under which a member that answers row numbers alone is asked about a view."""
    return f"{split}, view {view}"


@dataclass(frozen=True)
class Inputs:
    """The inputs a member wants; members with equal `Inputs` are shown the same tensors.

    Attributes:
        preprocessing: how rows become inputs; None for arrays passed unchanged.
    """

    preprocessing: AnyPreprocessing | None


class Rows(Protocol):
    """The part of a split's interface that a member uses."""

    def __len__(self) -> int: ...
    def name(self, row: int) -> str: ...  # a file's relative path, or "row 17"


class Answering(Protocol):
    """An opened member."""

    member: Member
    task: type[Task]
    fineness: float  # rounding error of its answers, as a share of its largest output

    @property
    def wants(self) -> Inputs | None:
        """The inputs it answers from; None if it needs row numbers only."""
        ...

    @property
    def module(self) -> nn.Module | None:
        """The module to differentiate through; None if the member has none."""
        ...

    @property
    def remark(self) -> str | None:
        """What a user should know about the member once it has answered a few rows; None if there is nothing."""
        ...

    def meets(self, split: str, rows: Rows) -> None:
        """Prepare for the rows of a split before the first of them is asked.

        Args:
            split: as passed to `answers`.

        Raises:
            EdistillError: it cannot answer these rows.
        """
        ...

    def to(self, device: torch.device) -> None:
        """Answer on `device` from now on; inputs arrive there."""
        ...

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """The answers to some rows in the cache's format, (B, W) float32.

        Args:
            split, rows: identify the rows. For rows distorted for an evaluation, `split` names the distortion
                ("test, rotation 3"), since these are not the rows of the split itself.
            inputs: (B, …), as requested by `wants`; other members may receive the same tensor. None if `wants` is None.

        Raises:
            EdistillError: the member fails, or its output is not an answer of its task.
        """
        ...
