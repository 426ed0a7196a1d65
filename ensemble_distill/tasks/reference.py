"""What a student says of calibration rows, by which others are judged: who is too uncertain, and which answers fit."""

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

FEWEST = 20  # rows; fewer say nothing of others
ROWS = 4096  # at most: the share of others that is kept or covered then varies by half a percent
NUMBERS = 2**14  # and numbers of all lists, some 200 kB of a file
# By how much a threshold lies above what it was read from, of that and of the total uncertainty or the score's unit.
# The file that is served rounds otherwise than torch, which made the list: without it rows that are equal to the
# threshold, as all copies of a row are, would fall on either side
ROUNDING, LEAST_ROUNDING = 1e-5, 1e-6
KEPT_BY = ("model_uncertainty", "total_uncertainty")  # by the first of them that a student has


@dataclass(frozen=True)
class Reference:
    """Sorted lists, of which any threshold is one number.

    Attributes:
        rows: how many answers they are of.
        total_uncertainty, model_uncertainty: of each; None where a student has none.
        conformal: (S, rows) how badly each one's label fits; None without labels, or where none is scored.
    """

    rows: Annotated[int, Field(ge=1)]
    total_uncertainty: tuple[float, ...]
    model_uncertainty: tuple[float, ...] | None = None
    conformal: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no calibration rows give."""
        for values in (self.total_uncertainty, self.model_uncertainty, *(self.conformal or ())):
            there = None if values is None else np.array(values)
            if there is not None and not (len(there) == self.rows and np.isfinite(there).all()):
                raise ValueError(f"of {self.rows} calibration rows it has {len(there)} numbers, or some not finite")
            if there is not None and (np.diff(there) < 0).any():
                raise ValueError("what it says of calibration rows is not sorted")

    def refuse_others(self, task: Task) -> None:
        """Raise ValueError where another task scored the labels."""
        scored = task.conformal
        wanted = 0 if scored is None else scored.lists(task.names)
        if self.conformal is not None and len(self.conformal) != wanted:
            raise ValueError(f"labels have {len(self.conformal)} scores a row, and {task.key} has {wanted}")

    def kept_by(self) -> str:
        """The uncertainty by which rows are kept, if nobody says which: of the model, where there is one."""
        return next(name for name in KEPT_BY if getattr(self, name) is not None)

    def threshold(self, coverage: float, by: str) -> float:
        """The least uncertainty that keeps this share of the calibration rows, and those equal to it but for rounding.

        Args:
            coverage: in (0, 1].
            by: one of `KEPT_BY` that the student has.
        """
        at = math.ceil(_exactly(coverage) * self.rows) - 1
        own = float(getattr(self, by)[at])
        return own + ROUNDING * abs(own) + LEAST_ROUNDING * abs(self.total_uncertainty[at])

    def conformal_thresholds(self, alpha: float) -> Array:
        """Of each list the ⌈(n + 1)(1 − α)⌉-th smallest score of n, float32 (S,), raised by rounding; infinite where
        there is none.

        A new row, exchangeable with these, scores no more with a probability of at least 1 − α.
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
        """What `inspect` says of it."""
        return {"rows": self.rows, "labels": self.conformal is not None}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Reference:
        """Inverse of `to_json`. Raises ValueError for what it never wrote."""
        return parsed(cls, record)


def fewest_for(alpha: float) -> int:
    """Calibration rows that are needed for a threshold of α."""
    return math.ceil(1 / _exactly(alpha)) - 1


def most_rows(task: Task) -> int:
    """How many answers a reference is made of at most."""
    scores = 0 if task.conformal is None else task.conformal.lists(task.names)
    return max(FEWEST, min(ROWS, NUMBERS // (2 + scores)))


def reference_of(task: Task, batches: Iterable[tuple[Mapping[str, Array], Array | None]]) -> Reference:
    """What outputs of calibration rows make.

    Args:
        batches: outputs of answers, by name, and their labels where there are any; no batch is kept.

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
    """As float32, each the shortest number that is read back as the same."""
    return tuple(float(str(value)) for value in np.sort(values.astype(np.float32)))


def _exactly(share: float) -> Fraction:
    """As it was written: 0.07 is 7 of 100, and 100 of it are 7, not 7.000000000000001."""
    return Fraction(repr(float(share)))
