"""How good predicted numbers are, and how sure each distribution is by itself; in the target's unit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.evaluation.figures import UNCERTAINTIES, Figures, Rows, means
from ensemble_distill.predictive.gaussian import COVERED, Gaussian

NAMES = ("rmse", "nll", "coverage95", *UNCERTAINTIES)


def quality(predictive: Gaussian, y: Tensor | None) -> Rows:
    """The mean and the variance of each distribution; with targets y (B,) its mistakes too. Each (B, M).

    `covered` is 1 where |y − μ| ≤ 1.96σ: of a mixture's moments, where the predictive is pooled.
    """
    variance = predictive.log_variance.exp()
    rows = {"mean": predictive.mean.numpy(), "variance": variance.numpy()}
    if y is not None:
        error = y.unsqueeze(1) - predictive.mean
        rows["squared_error"] = error.square().numpy()
        rows["covered"] = (error.abs() <= COVERED * variance.sqrt()).double().numpy()
    return rows


def uncertainty(predictive: Gaussian) -> Tensor:
    """Each distribution's own variance, (B, M)."""
    return predictive.log_variance.exp()


def unit(ensemble: Mapping[str, NDArray[np.float64]]) -> float:
    """What uncertainties are measured in: targets of 1e6 and of 1e-6 are the same problem."""
    return float(ensemble["total_uncertainty"].mean())


def figures(rows: Mapping[str, NDArray[np.float64]]) -> Figures:
    """One model's figures from rows (N,), or the mean over members of each one's own from rows (N, M).

    `rmse` is in the target's unit, `coverage95` a share of the rows, and the uncertainties are mean variances.
    """
    found: Figures = dict.fromkeys(NAMES)
    found |= means(rows, {name: "covered" if name == "coverage95" else name for name in NAMES})
    if "squared_error" in rows:
        found["rmse"] = float(np.sqrt(rows["squared_error"].mean(0)).mean())
    return found
