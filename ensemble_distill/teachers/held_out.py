"""A member of a k-fold ensemble that answers the training rows it was not trained on."""

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
    """See `Answering`. On the split `held-out` it answers the rows of its own fold, and NaN elsewhere.

    Args:
        asked: the wrapped member.
        fold: the fold that the member was not trained on.
        folds: (N,), the fold of each training row.
    """

    def __init__(self, asked: Answering, fold: int, folds: NDArray[np.int64]) -> None:
        super().__init__(asked)
        self._fold, self._own = fold, folds == fold

    def meets(self, split: str, rows: Rows) -> None:
        super().meets(_asked_as(split), rows)

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """See `Answering`; also raises EdistillError if the member does not answer a row of its own fold."""
        if _asked_as(split) == split:
            return self._asked.answers(split, rows, inputs)
        at = np.flatnonzero(self._own[list(rows)])
        some = at if len(at) else np.zeros(1, np.int64)  # without a row of its own, any row tells the width
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
    """The split that the wrapped member is asked about; a distortion ("held-out, rotation 3") is kept."""
    return TRAIN + split.removeprefix(HELD_OUT) if split.partition(",")[0] == HELD_OUT else split
