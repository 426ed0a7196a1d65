"""The students of runs, and their outputs on rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.data.batches import plain_batches
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.given import Given
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runs.run import Run
from ensemble_distill.students.own_row import refuse_dependent


class Students:
    """The students of one or more runs.

    Args:
        given: the device to compute on, and the code that may make the bodies.
        runs: the runs.
        calibrated: whether students apply their runs' calibrations.
    """

    def __init__(self, given: Given, runs: Sequence[Run], calibrated: bool = True) -> None:
        self._given, self.runs = given, runs
        self.modules = [run.student(trust=given.trusted, calibrated=calibrated).to(given.device) for run in runs]
        self._tried = False

    @torch.no_grad()
    def raw(self, source: Source, named: str) -> Iterator[tuple[range, list[Tensor]]]:
        """(rows, outputs) in the batches of `plain_batches`; outputs are (B, H, *shape) in float64 for each student.

        Raises:
            EdistillError: a student's prediction for a row depends on other rows, or is not finite.
        """
        wanted = [run.architecture.preprocessing for run in self.runs]
        for rows, inputs in plain_batches(source, wanted, self._given.workers, self._given.device):
            self._refuse_dependent(inputs)
            found = []
            for run, student, x in zip(self.runs, self.modules, inputs, strict=True):
                found.append(student(x).cpu().double())
                _refuse_not_finite(found[-1], run, rows, named)
            yield rows, found

    def predictive(self, raw: Sequence[Tensor]) -> dict[int, Predictive]:
        """The distributions of each student's outputs, by the position of its run."""
        said = [student.predictive(each) for student, each in zip(self.modules, raw, strict=True)]
        return dict(enumerate(said))

    def _refuse_dependent(self, inputs: Sequence[Tensor]) -> None:
        """Raise EdistillError if a student's prediction for a row depends on others; only checks the first batch."""
        if not self._tried:
            for run, student, x in zip(self.runs, self.modules, inputs, strict=True):
                refuse_dependent(student, x, str(run.folder))
        self._tried = True


def _refuse_not_finite(raw: Tensor, run: Run, rows: range, named: str) -> None:
    finite = raw.flatten(1).isfinite().all(1).numpy()
    if not finite.all():
        at = int(np.argmin(finite))
        head = int(raw[at].flatten(1).isfinite().all(-1).int().argmin())
        raise EdistillError(
            f"Head {head} of the student of {run.folder} says {raw[at, head].flatten()[:4].tolist()} at row {rows[at]} "
            f"of {named}: not finite. Train it again, with a smaller train.lr or train.clip-grad where it was trained, "
            "from other members (student.init) where it was solved for."
        )
