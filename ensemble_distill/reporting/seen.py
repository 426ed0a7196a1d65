"""What a report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.each_head import EachHead
from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.reporting.drawing import shortened
from ensemble_distill.runtime.names import one_line
from ensemble_distill.tasks.figures import Values


@dataclass(frozen=True)
class Seen:
    """One run beside its ensemble, row by row.

    Attributes:
        evaluation: its figures.
        members: the ensemble's names.
        ensemble, student: of each answer of the split.
        compared: of the student's heads that are compared with the ensemble; see `SplitValues`.
        elsewhere: of each OOD set the rows of ensemble and student.
        heads: how near each is, and where the student is farthest off.
        called: what those farthest rows are called.
        looks: their pictures, (H, W, C) of uint8, where rows are pictures.
    """

    evaluation: Evaluation
    members: tuple[str, ...]
    ensemble: Values
    student: Values
    compared: Values
    elsewhere: Mapping[str, tuple[Values, Values]]
    heads: EachHead
    called: Mapping[int, str]
    looks: Mapping[int, NDArray[np.uint8]]

    @property
    def run(self) -> str:
        """Its name, as text and pictures can hold it."""
        return one_line(self.evaluation.run)

    def label(self, model: str) -> str:
        """What a picture calls a model, one of `COLORS`."""
        return shortened(self.run) if model == STUDENT else model

    @property
    def uncertain(self) -> tuple[str, str]:
        """The uncertainty that both have, as rows name it and as a person does: that of the model, if it can be."""
        key = "model_uncertainty"
        both = key in self.student and key in self.ensemble and not np.isnan(self.ensemble[key]).all()
        return (key, "model uncertainty") if both else ("total_uncertainty", "total uncertainty")
