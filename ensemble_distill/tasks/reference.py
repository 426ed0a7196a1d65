"""A student's outputs on calibration rows, against which new rows are judged: too uncertain? which answers fit?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ensemble_distill.runtime.grown import Grown, GrownValues
from ensemble_distill.runtime.records import parsed
from ensemble_distill.tasks.task import Task

Array = NDArray[Any]

FEWEST = 20  # rows; fewer say too little about others
ROWS = 4096  # rows at most: the share of new rows that is kept or covered then varies by half a percent
NUMBERS = 2**14  # numbers at most, over all lists: some 200 kB in a file
# How far a threshold is raised, relative to itself and to the total uncertainty or the score's unit. An exported file
# rounds differently from torch, which made the lists: without this margin, rows equal to the threshold, such as all
# copies of a row, would fall on either side
ROUNDING, LEAST_ROUNDING = 1e-5, 1e-6
KEPT_BY = ("model_uncertainty", "total_uncertainty")  # the first one that a student has is the default


@dataclass(frozen=True)
class Reference:
    """Sorted lists from calibration rows; any threshold is one of their numbers.

    Attributes:
        rows: the number of answers.
        total_uncertainty, model_uncertainty: one per answer; `model_uncertainty` is None if the student has none.
        conformal: (S, rows), how badly each label fits; None without labels, or if the task scores none.
    """

    rows: Annotated[int, Field(ge=1)]
    total_uncertainty: tuple[float, ...]
    model_uncertainty: tuple[float, ...] | None = None
    conformal: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for lists that no calibration rows produce."""
        for values in (self.total_uncertainty, self.model_uncertainty, *(self.conformal or ())):
            there = None if values is None else np.array(values)
            if there is not None and not (len(there) == self.rows and np.isfinite(there).all()):
                raise ValueError(f"of {self.rows} calibration rows it has {len(there)} numbers, or some not finite")
            if there is not None and (np.diff(there) < 0).any():
                raise ValueError("what it says of calibration rows is not sorted")

    def refuse_others(self, task: Task) -> None:
        """Raise ValueError if another task scored the labels."""
        scored = task.conformal
        wanted = 0 if scored is None else scored.lists(task.names)
        if self.conformal is not None and len(self.conformal) != wanted:
            raise ValueError(f"labels have {len(self.conformal)} scores a row, and {task.key} has {wanted}")

    def kept_by(self) -> str:
        """The uncertainty by which rows are kept by default: model uncertainty if there is one, else the total."""
        return next(name for name in KEPT_BY if getattr(self, name) is not None)

    def threshold(self, coverage: float, by: str) -> float:
        """The least uncertainty that keeps this share of the calibration rows, raised by rounding.

        Args:
            coverage: in (0, 1].
            by: an uncertainty of `KEPT_BY` that the student has.
        """
        at = math.ceil(_exactly(coverage) * self.rows) - 1
        own = float(getattr(self, by)[at])
        return own + ROUNDING * abs(own) + LEAST_ROUNDING * abs(self.total_uncertainty[at])

    def conformal_thresholds(self, alpha: float) -> Array:
        """For each list, the ⌈(n + 1)(1 − α)⌉-th smallest of its n scores, raised by rounding; float32 (S,).

        A new row that is exchangeable with these scores no more than the threshold with probability at least 1 − α.
        Thresholds are infinite if n is too small to have that score.
        """
        assert self.conformal is not None
        rank = math.ceil((self.rows + 1) * (1 - _exactly(alpha)))
        if rank > self.rows:
            return np.full(len(self.conformal), np.inf, np.float32)
        own = np.array([one[rank - 1] for one in self.conformal])
        raised = own + ROUNDING * np.abs(own) + LEAST_ROUNDING
        found: Array = np.minimum(raised, np.finfo(np.float32).max).astype(np.float32)
        return found

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": self.rows}
        found |= {name: list(own) for name in KEPT_BY if (own := getattr(self, name)) is not None}
        return found | ({} if self.conformal is None else {"conformal": [list(one) for one in self.conformal]})

    def told(self) -> dict[str, Any]:
        """What `inspect` shows of the reference."""
        return {"rows": self.rows, "labels": self.conformal is not None}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Reference:
        """Inverse of `to_json`. Raises ValueError for a record that it did not write."""
        return parsed(cls, record)


def fewest_for(alpha: float) -> int:
    """The number of calibration rows that a finite threshold for α needs."""
    return math.ceil(1 / _exactly(alpha)) - 1


def most_rows(task: Task) -> int:
    """The most answers that a reference of this task is made from."""
    scores = 0 if task.conformal is None else task.conformal.lists(task.names)
    return max(FEWEST, min(ROWS, NUMBERS // (2 + scores)))


def reference_of(task: Task, batches: Iterable[tuple[Mapping[str, Array], Array | None]]) -> Reference:
    """The reference made from a student's outputs on calibration rows.

    Args:
        task: the student's task.
        batches: outputs of answers by name, and their labels, if any; batches are not kept in memory.

    Raises:
        ValueError: an output is not finite.
    """
    said, scores, scored = GrownValues(), Grown(), task.conformal
    for outputs, labels in batches:
        said.add({name: outputs[name] for name in KEPT_BY if name in outputs})
        if scored is not None and labels is not None:
            scores.add(scored.scores(outputs, labels))
    uncertainties = said.all()
    return Reference(
        rows=len(uncertainties["total_uncertainty"]),
        total_uncertainty=_sorted(uncertainties["total_uncertainty"]),
        model_uncertainty=_sorted(uncertainties["model_uncertainty"]) if "model_uncertainty" in uncertainties else None,
        conformal=tuple(map(_sorted, scores.all().T)) if len(scores) else None,
    )


def _sorted(values: Array) -> tuple[float, ...]:
    """The values as float32 in ascending order, each as the shortest decimal that reads back as the same float32."""
    return tuple(float(str(value)) for value in np.sort(values.astype(np.float32)))


def _exactly(share: float) -> Fraction:
    """The share as it was written: 0.07 becomes 7/100, so that 100 times it is 7, not 7.000000000000001."""
    return Fraction(repr(float(share)))
