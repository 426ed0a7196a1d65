"""The values that a report is drawn from."""

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
    """A run and its ensemble, row by row.

    Attributes:
        evaluation: the run's figures.
        members: the names of the ensemble's members.
        ensemble, student: values for each row of the split.
        compared: those of the student's heads that are compared with the ensemble; see `SplitValues`.
        elsewhere: the values of ensemble and student for each OOD set.
        heads: how close each head is, and where the student differs most.
        called: the names of the rows where it differs most.
        looks: their pictures, (H, W, C) of uint8, if rows are pictures.
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
        """The run's name, escaped for text and figures."""
        return one_line(self.evaluation.run)

    def label(self, model: str) -> str:
        """The name of a model, one of `COLORS`, in a figure."""
        return shortened(self.run) if model == STUDENT else model

    @property
    def uncertain(self) -> tuple[str, str]:
        """The uncertainty that both models have, as its key and in words: model uncertainty if possible, else the
        total."""
        key = "model_uncertainty"
        both = key in self.student and key in self.ensemble and not np.isnan(self.ensemble[key]).all()
        return (key, "model uncertainty") if both else ("total_uncertainty", "total uncertainty")
