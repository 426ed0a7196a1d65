"""What can be predicted, and how well it was: a task a file beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.evaluation import classification, regression
from ensemble_distill.evaluation.figures import Figures, Rows


class Task(Protocol):
    """A module with these is a task. `Any` is the family of distributions that the task's models predict."""

    @property
    def NAMES(self) -> tuple[str, ...]: ...  # noqa: N802  # of the figures, in the order they are shown
    def quality(self, predictive: Any, y: Tensor | None) -> Rows: ...  # of each distribution by itself, (B, M)
    def uncertainty(self, predictive: Any) -> Tensor: ...  # of each distribution by itself, (B, M)
    def unit(self, ensemble: Mapping[str, NDArray[np.float64]]) -> float: ...  # of the uncertainties
    def figures(self, rows: Mapping[str, NDArray[np.float64]]) -> Figures: ...  # `NAMES`, from all rows of a model


TASKS: dict[str, Task] = {"classification": classification, "regression": regression}
