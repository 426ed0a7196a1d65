"""How good predicted classes are, and how sure each distribution is by itself; nats."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ensemble_distill.evaluation.figures import UNCERTAINTIES, Figures, Rows, means
from ensemble_distill.predictive.categorical import Categorical

NAMES = ("accuracy", "nll", "brier", "ece", *UNCERTAINTIES)
ECE_BINS = 15


def quality(predictive: Categorical, y: Tensor | None) -> Rows:
    """The top class of each distribution and its probability; with classes y (B,) its mistakes too. Each (B, M)."""
    probs = predictive.means()
    confidence, top = probs.max(-1)
    rows = {"prediction": top.double().numpy(), "confidence": confidence.numpy()}
    if y is not None:
        true = torch.nn.functional.one_hot(y, probs.shape[-1]).unsqueeze(1)
        rows["correct"] = (top == y.unsqueeze(1)).double().numpy()
        rows["brier"] = (probs - true).square().sum(-1).numpy()
    return rows


def uncertainty(predictive: Categorical) -> Tensor:
    """Each distribution's own entropy, (B, M)."""
    return predictive.entropy()


def unit(ensemble: Mapping[str, NDArray[np.float64]]) -> float:
    """What uncertainties are measured in: a nat."""
    return 1.0


def figures(rows: Mapping[str, NDArray[np.float64]]) -> Figures:
    """One model's figures from rows (N,), or the mean over members of each one's own from rows (N, M).

    `brier` sums over the classes, 0 to 2; `ece` has 15 bins.
    """
    found = means(rows, {name: "correct" if name == "accuracy" else name for name in NAMES})
    if "correct" in rows:
        confidence = rows["confidence"].reshape(len(rows["confidence"]), -1)
        correct = rows["correct"].reshape(confidence.shape)
        found["ece"] = float(
            np.mean([expected_calibration_error(c, r) for c, r in zip(confidence.T, correct.T, strict=True)])
        )
    return found


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> float:
    """Mean |accuracy − confidence| over equal-width bins of the top probability, weighted by their rows.

    A confidence of 1.0 belongs to the last bin (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
