"""A member of a k-fold ensemble that is asked about training rows: it answers those that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import HELD_OUT
from ensemble_distill.teachers.answering import Answering, Rows
from ensemble_distill.teachers.forwarded import Forwarded

TRAIN = "train"


class AnswersHeldOut(Forwarded):
    """See `Answering`. Of the split `held-out` it answers its own fold, and NaN of the others.

    Args:
        asked: the member.
        fold: its own.
        folds: (N,) of each training row.
    """

    def __init__(self, asked: Answering, fold: int, folds: NDArray[np.int64]) -> None:
        super().__init__(asked)
        self._fold, self._own = fold, folds == fold

    def meets(self, split: str, rows: Rows) -> None:
        super().meets(_asked_as(split), rows)

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """Raises EdistillError, too, where it does not answer a row of its fold."""
        if _asked_as(split) == split:
            return self._asked.answers(split, rows, inputs)
        at = np.flatnonzero(self._own[list(rows)])
        some = at if len(at) else np.zeros(1, np.int64)  # of none of its own it says how many numbers it says
        shown = None if inputs is None else inputs[torch.from_numpy(some).to(inputs.device)]
        said = self._asked.answers(_asked_as(split), [rows[place] for place in some.tolist()], shown)
        found = np.full((len(rows), *said.shape[1:]), np.nan, np.float32)
        if len(at):
            self._refuse_silent(said, [rows[place] for place in at.tolist()])
            found[at] = said
        return found

    def _refuse_silent(self, said: NDArray[np.float32], rows: Sequence[int]) -> None:
        silent = np.isnan(said.reshape(len(said), -1)).all(1)
        if silent.any():
            raise EdistillError(
                f"teachers.folds says that {self.member.name} was trained without fold {self._fold}, and it does not "
                f"answer row {rows[int(silent.argmax())]} of that fold: NaN. Folds go to members by the natural order "
                "of their names: fix the folds, or the outputs."
            )


def _asked_as(split: str) -> str:
    """What the member itself is asked about; of distorted rows, "held-out, rotation 3", too."""
    return TRAIN + split.removeprefix(HELD_OUT) if split.partition(",")[0] == HELD_OUT else split
