"""Split-conformal prediction: sets and intervals that contain a new row's truth with probability at least 1 − α.

Every calibration row gets a score: how badly its label fits the prediction. The set or interval of a new row holds the
answers whose scores are no worse than those of all but a share α of the calibration rows (Vovk et al. 2005; for
classes, Sadinle et al. 2019, arXiv:1609.00451; for regression, Lei et al. 2018, arXiv:1604.04173).

Scores and thresholds are float32, so both sides of a comparison are rounded alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.tasks.figures import Values

Array = NDArray[Any]
Outputs = Mapping[str, Array]  # an exported student's named outputs for A answers

LEAST = np.finfo(np.float32).min
MOST = np.finfo(np.float32).max
NARROWEST = float(np.finfo(np.float32).tiny)  # least variance, since errors are divided by standard deviations


class Conformal(Protocol):
    """How answers of one kind are scored."""

    @property
    def columns(self) -> tuple[str, ...]: ...  # the first words of the columns that `told` yields
    @property
    def size(self) -> str: ...  # what the size of a prediction means, in words

    def lists(self, names: tuple[str, ...]) -> int:
        """S, the number of scores of an answer; `names` are the task's."""
        ...

    def scores(self, outputs: Outputs, labels: Array) -> Array:
        """How badly labels fit the outputs, float32 (A, S); larger is worse."""
        ...

    def told(self, names: tuple[str, ...], outputs: Outputs, thresholds: Array) -> Iterator[dict[str, Any]]:
        """What `predict` writes for each answer.

        Args:
            names: the task's.
            outputs: the student's.
            thresholds: (S,), the largest scores that are still inside; infinite if every answer is inside.
        """
        ...

    def measured(self, outputs: Outputs, labels: Array, thresholds: Array) -> Values:
        """For each answer, whether the truth is inside, `covered`, and the prediction's `size`, both (A, S)."""
        ...


class Sets:
    """Sets of the classes whose probability p is at least a threshold: on average the smallest sets of that coverage.

    The score is −ln p, which orders classes as 1 − p does and is exact where p is near 0 or 1. The likeliest class is
    always in the set: otherwise, if a student errs on less than α of the rows, the sets of hard rows would be empty.
    This only enlarges sets, so the guarantee still holds. Adaptive sets (APS) are larger on average, and need random
    numbers to be exact.
    """

    columns: tuple[str, ...] = ("conformal_set", "conformal_size")
    size: str = "classes in a set"

    def lists(self, names: tuple[str, ...]) -> int:
        return 1

    def scores(self, outputs: Outputs, labels: Array) -> Array:
        return self._each(outputs)[np.arange(len(labels)), labels][:, None]

    def told(self, names: tuple[str, ...], outputs: Outputs, thresholds: Array) -> Iterator[dict[str, Any]]:
        for inside in self._inside(outputs, thresholds):
            found = [names[at] for at in np.flatnonzero(inside)]
            yield {"conformal_set": found, "conformal_size": len(found)}

    def measured(self, outputs: Outputs, labels: Array, thresholds: Array) -> Values:
        inside = self._inside(outputs, thresholds)
        return {
            "covered": self._covered(inside, labels)[:, None].astype(float),
            "size": inside.sum(1, keepdims=True).astype(float),
        }

    def _inside(self, outputs: Outputs, thresholds: Array) -> Array:
        """Whether each class is in the set, (A, K)."""
        each = self._each(outputs)
        inside: Array = (each <= thresholds) | (each == each.min(1, keepdims=True))
        return inside

    def _covered(self, inside: Array, labels: Array) -> Array:
        covered: Array = inside[np.arange(len(labels)), labels]
        return covered

    def _each(self, outputs: Outputs) -> Array:
        """The score of each class, (A, K)."""
        scores: Array = np.clip(-outputs["logits"].astype(np.float32), LEAST, MOST)
        return scores


class LabelSets(Sets):
    """Sets of the labels that are likely enough, meant to contain all labels of the row.

    A row's score is that of its least likely label; a row without labels fits any set.
    """

    size: str = "labels in a set"

    def scores(self, outputs: Outputs, labels: Array) -> Array:
        scores: Array = np.where(labels > 0, self._each(outputs), LEAST).max(1, keepdims=True)
        return scores

    def _inside(self, outputs: Outputs, thresholds: Array) -> Array:
        inside: Array = self._each(outputs) <= thresholds
        return inside

    def _covered(self, inside: Array, labels: Array) -> Array:
        covered: Array = (inside | (labels == 0)).all(1)
        return covered


class Intervals:
    """Intervals of mean ± t standard deviations for each target; the score is |y − mean| ÷ standard deviation."""

    columns: tuple[str, ...] = ("conformal_lower", "conformal_upper")
    size: str = "width of an interval"

    def lists(self, names: tuple[str, ...]) -> int:
        return len(names) or 1

    def scores(self, outputs: Outputs, labels: Array) -> Array:
        mean, deviation = self._each(outputs)
        apart = np.abs(labels.reshape(mean.shape).astype(np.float64) - mean) / deviation
        return np.minimum(apart, MOST).astype(np.float32)

    def told(self, names: tuple[str, ...], outputs: Outputs, thresholds: Array) -> Iterator[dict[str, Any]]:
        """The bounds of each target; None if the threshold is infinite."""
        behind = [f" {name}" for name in names] or [""]
        finite = np.isfinite(thresholds)
        for mean, deviation in zip(*self._each(outputs), strict=True):
            reach = np.where(finite, thresholds, 0).astype(np.float64) * deviation
            record: dict[str, float | None] = {}
            for name, has, low, high in zip(behind, finite, mean - reach, mean + reach, strict=True):
                record[f"conformal_lower{name}"] = float(low) if has else None
                record[f"conformal_upper{name}"] = float(high) if has else None
            yield record

    def measured(self, outputs: Outputs, labels: Array, thresholds: Array) -> Values:
        covered = self.scores(outputs, labels) <= thresholds
        return {"covered": covered.astype(float), "size": 2 * thresholds.astype(np.float64) * self._each(outputs)[1]}

    def _each(self, outputs: Outputs) -> tuple[Array, Array]:
        """Means and standard deviations, (A, S)."""
        mean, variance = (
            outputs[name].astype(np.float64).reshape(len(outputs[name]), -1) for name in ("mean", "variance")
        )
        return mean, np.sqrt(np.maximum(variance, NARROWEST))
