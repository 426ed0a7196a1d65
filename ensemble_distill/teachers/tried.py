"""A member that is tried on a few rows before its first answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.forwarded import Forwarded
from ensemble_distill.teachers.trial import Few, tried


class TriedFirst(Forwarded):
    """See `Answering`. Before its first answer, the member is tried on some of the rows it is asked about.

    Args:
        asked: the member.
        count: number of the data's classes or targets; None if unknown.
        tell: called with what the trial has to tell the user.
    """

    def __init__(self, asked: Answering, count: int | None, tell: Callable[[str], None]) -> None:
        super().__init__(asked)
        self._count, self._tell, self._tried = count, tell, False

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """See `Answering`; also raises EdistillError as `tried` does."""
        if not self._tried:
            some = some_rows(len(rows))
            few = Few(split, [rows[at] for at in some], None if inputs is None else inputs[some])
            self._asked, told = tried(self._asked, few, self._count)
            self._tried = True
            if told is not None:
                self._tell(told)
        return self._asked.answers(split, rows, inputs)
