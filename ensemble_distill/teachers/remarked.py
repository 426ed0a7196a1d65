"""Check the outputs of members of other runtimes like those of networks, and collect remarks for the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_distill.facts import Member
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.checks.logits import FLOOR


class Remarked:
    """Converts a member's outputs to the cache's format and collects what a user should know about them.

    Attributes:
        remark: see `Answering`.
    """

    def __init__(self, task: type[Task], member: Member) -> None:
        self.task, self.member = task, member
        self._told: list[str] = []
        self._floored = self._seen = False
        self._flat: tuple[int, ...] | None = None

    def tell(self, sentence: str | None) -> None:
        """Add a sentence to the remark; None adds nothing."""
        self._told += [sentence] if sentence else []

    @property
    def remark(self) -> str | None:
        name, told = self.member.name, list(dict.fromkeys(self._told))
        if self._floored:
            told.append(
                f"Member {name} says probabilities below {FLOOR:g}: they are raised to that before the logarithm."
            )
        if self._flat is not None:
            told.append(
                f"Member {name} takes rows of one dimension, and is given those of shape {self._flat} channel by "
                "channel. If it was fitted on pixels with the channels last, what it says is wrong."
            )
        return " ".join(told) or None

    def flat(self, x: NDArray[Any]) -> NDArray[Any]:
        """Rows (B, …) flattened to (B, F) in row-major order."""
        if x.ndim == 4 and x.shape[1] > 1:
            self._flat = x.shape[1:]
        return x.reshape(len(x), -1)

    def answers(self, said: NDArray[Any], split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """A member's output (B, ·) for some rows, in the format of `Answering.answers`.

        Raises:
            EdistillError: it is not an answer of the task, or is unlikely to mean what the settings say.
        """
        raw = self.task.joined(torch.from_numpy(said), len(rows), self.member)
        if not self._seen:
            self._seen = True
            self.task.refuse_unlikely(raw, self.member, split, rows)
        if self.member.output == "probabilities":
            self._floored |= bool((raw < FLOOR).any())
        return self.task.answers(raw, self.member, split, rows)
