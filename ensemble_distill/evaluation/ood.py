"""Detecting out-of-distribution rows by their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ensemble_distill.evaluation.ties import ranks
from ensemble_distill.tasks.figures import Figures

SCORES = ("total_uncertainty", "model_uncertainty")


Rows = Mapping[str, NDArray[np.float64]]


def detection(inside: Rows, outside: Rows, unit: float = 1.0) -> Figures:
    """AUROC of each uncertainty as a score, with out-of-distribution rows positive; None if a model lacks it.

    For members, it is the mean over members of each one's AUROC. Rows on which a score is NaN are left out.

    Args:
        inside, outside: values (N,), or (N, M) for members, of rows inside and outside the distribution.
        unit: the unit of uncertainties; see `Task.unit`.
    """
    figures: Figures = dict.fromkeys(SCORES)
    for score in SCORES:
        if score in inside and score in outside:
            a, b = (np.asarray(rows[score]).reshape(len(rows[score]), -1) for rows in (inside, outside))
            pairs = [(x[~np.isnan(x)], y[~np.isnan(y)]) for x, y in zip(a.T, b.T, strict=True)]
            found = [
                roc_auc_score(np.r_[np.zeros(len(x)), np.ones(len(y))], ranks(np.r_[x, y], unit))
                for x, y in pairs
                if len(x) and len(y)
            ]
            figures[score] = float(np.mean(found)) if found else None
    return figures
