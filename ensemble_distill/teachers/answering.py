"""What is asked of a member: which inputs it wants, and what it says of rows.

Who asks does not know whether a network answers, a session of another runtime, or a table of ready-made outputs.
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

ROUNDING = 1e-5  # of the largest output; float32 resolves a hundredth of that


def in_view(split: str, view: int) -> str:
    """What who answers row numbers alone is asked about, where rows are shown in views."""
    return f"{split}, view {view}"


@dataclass(frozen=True)
class Inputs:
    """Inputs that a member wants; members that want equal ones are shown the same.

    Attributes:
        preprocessing: how pixels become them; None for arrays as they are.
    """

    preprocessing: AnyPreprocessing | None


class Rows(Protocol):
    """A split, as far as a member looks at it."""

    def __len__(self) -> int: ...
    def name(self, row: int) -> str: ...  # a file's relative name, or "row 17"


class Answering(Protocol):
    """A member that is opened."""

    member: Member
    task: type[Task]
    fineness: float  # share of its largest output by which rounding moves what it says of a row

    @property
    def wants(self) -> Inputs | None:
        """The inputs that it answers from; None where row numbers alone are enough."""
        ...

    @property
    def module(self) -> nn.Module | None:
        """What gives gradients; None where nothing does."""
        ...

    @property
    def remark(self) -> str | None:
        """What a user should know of it, a sentence, once it has answered a few rows; None where there is nothing."""
        ...

    def meets(self, split: str, rows: Rows) -> None:
        """See which rows it is going to be asked about, before it is.

        Args:
            split: as `answers` is given it.

        Raises:
            EdistillError: it does not answer these rows.
        """
        ...

    def to(self, device: torch.device) -> None:
        """Answer on a device from now on; inputs come there."""
        ...

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """What it says of some rows, as the cache holds it, (B, W) float32.

        Args:
            split, rows: which rows these are. Of rows that are distorted for an evaluation, `split` says so in words
                ("test, rotation 3"): they are not those of the split.
            inputs: (B, …) of them, as it wants them; others may be given the same.

        Raises:
            EdistillError: it fails, or what it says is no answer of its task.
        """
        ...
