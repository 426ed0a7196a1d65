"""The figures of one model, reduced from its rows; what does not apply is None."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

NAMES = ("accuracy", "nll", "brier", "ece", "total_uncertainty", "data_uncertainty", "model_uncertainty")
ECE_BINS = 15

Figures = dict[str, float | None]


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> float:
    """Mean |accuracy − confidence| over equal-width bins of the top probability, weighted by their rows.

    A confidence of 1.0 belongs to the last bin (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def classification(rows: Mapping[str, NDArray[np.float64]]) -> Figures:
    """One model's figures from rows (N,), or the mean over members of each one's own from rows (N, M)."""
    figures: Figures = dict.fromkeys(NAMES)
    for name, source in (("accuracy", "correct"), *((n, n) for n in NAMES)):
        if source in rows:
            figures[name] = float(rows[source].mean())
    if "correct" in rows:
        confidence = rows["confidence"].reshape(len(rows["confidence"]), -1)
        correct = rows["correct"].reshape(confidence.shape)
        figures["ece"] = float(
            np.mean([expected_calibration_error(c, r) for c, r in zip(confidence.T, correct.T, strict=True)])
        )
    return figures
