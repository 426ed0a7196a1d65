"""What is gained by leaving the most uncertain rows to others, and how often conformal sets contain the truth.

Thresholds come from the calibration rows, as in an exported file; the figures are measured on other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.figures import UNCERTAINTIES, Figures, Values, row_mean
from ensemble_distill.tasks.reference import Reference

COVERAGES = (0.95, 0.9, 0.8)
ALPHAS = (0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Kept:
    """The rows that are kept at a threshold of uncertainty.

    Attributes:
        coverage: the share of the calibration rows that the threshold keeps; 1 for all rows, without a threshold.
        threshold: the largest uncertainty of kept rows; None for no threshold.
        share: the share of the evaluated rows that is kept.
        figures: quality on the kept rows; None if there are none.
    """

    coverage: float
    threshold: float | None
    share: float
    figures: Figures | None


@dataclass(frozen=True)
class Covered:
    """The conformal predictions for one α.

    Attributes:
        alpha: the share of rows on which they may miss the truth.
        thresholds: the thresholds of the scores; None for one at which every answer is inside, since there are too few
            calibration rows.
        coverage: the share of the evaluated rows whose truth is inside, averaged over targets.
        size: the mean size of the sets or intervals; None if it is infinite.
    """

    alpha: float
    thresholds: tuple[float | None, ...]
    coverage: float
    size: float | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "thresholds": list(self.thresholds)}

    @property
    def figures(self) -> Figures:
        return {"covered": self.coverage, "size": self.size}


@dataclass(frozen=True)
class Selective:
    """Selective and conformal predictions of one student.

    Attributes:
        rows: the number of calibration answers.
        by: the uncertainty by which rows are kept.
        kept: one for each coverage, with all rows first.
        covered: one for each α; None without labels, or if the task has no conformal predictions.
    """

    rows: int
    by: str
    kept: tuple[Kept, ...]
    covered: tuple[Covered, ...] | None

    def to_json(self) -> dict[str, Any]:
        """The record in `evaluate --json`."""
        covered = None if self.covered is None else [one.to_json() for one in self.covered]
        return {"rows": self.rows, "by": self.by, "kept": [asdict(one) for one in self.kept], "covered": covered}

    def sections(self) -> Iterator[tuple[str, Figures]]:
        """The sections of the table, one for each threshold."""
        for kept in self.kept[1:]:
            nothing: Figures = dict.fromkeys(self.kept[0].figures or ())
            yield f"kept/{kept.coverage}", {"kept": kept.share, **(kept.figures or nothing)}
        for covered in self.covered or ():
            yield f"conformal/{covered.alpha}", covered.figures


def conformal_rows(task: Task, reference: Reference | None, student: Predictive, y: Tensor | None) -> Values:
    """For each α, whether each answer's truth is in its set or interval, and the size of that, (A, S); see `_named`."""
    scored = task.conformal
    if scored is None or reference is None or reference.conformal is None or y is None:
        return {}
    outputs = {name: values.numpy() for name, values in named_outputs(student).items()}
    found: Values = {}
    for alpha in ALPHAS:
        measured = scored.measured(outputs, y.numpy(), reference.conformal_thresholds(alpha))
        found |= {_named(name, alpha): values for name, values in measured.items()}
    return found


def selective(task: Task, reference: Reference, own: Values, conformal: Values) -> Selective:
    """The selective and conformal predictions of one student.

    Args:
        task: its task.
        reference: its outputs on the calibration rows.
        own: its values from `prediction_rows`.
        conformal: its values from `conformal_rows`.
    """
    by = reference.kept_by()
    return Selective(
        rows=reference.rows,
        by=by,
        kept=(
            Kept(1.0, None, 1.0, _quality(task, own)),
            *(_kept(task, own, by, coverage, reference.threshold(coverage, by)) for coverage in COVERAGES),
        ),
        covered=tuple(_covered(task, reference, conformal, alpha) for alpha in ALPHAS) if conformal else None,
    )


def _kept(task: Task, own: Values, by: str, coverage: float, threshold: float) -> Kept:
    kept = own[by].astype(np.float32) <= np.float32(threshold)
    some = {name: values[kept] for name, values in own.items()}
    return Kept(coverage, threshold, float(kept.mean()), _quality(task, some) if kept.any() else None)


def _quality(task: Task, rows: Mapping[str, Any]) -> Figures:
    figures = task.figures(rows)
    return {name: figures[name] for name in task.figures_shown if name not in UNCERTAINTIES}


def _covered(task: Task, reference: Reference, conformal: Values, alpha: float) -> Covered:
    thresholds = reference.conformal_thresholds(alpha)
    covered, size = conformal[_named("covered", alpha)], conformal[_named("size", alpha)]
    finite = bool(np.isfinite(size).all())
    return Covered(
        alpha=alpha,
        thresholds=tuple(float(t) if np.isfinite(t) else None for t in thresholds),
        coverage=row_mean(covered) or 0.0,
        size=row_mean(np.sqrt(task.comparable(np.square(size)))) if finite else None,
    )


def _named(name: str, alpha: float) -> str:
    return f"{name} {alpha}"
