"""How much of the ensemble is left in the student, diversity first.

The ratio and the rank correlation of model uncertainty are easily faked: constant random offsets on one mean reach
a ratio of 1 and a Spearman of .95. `diversity_explained` is not; what such fakes get is in `controls`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.names import FIDELITY
from ensemble_distill.evaluation.ties import ROUNDING, ranks
from ensemble_distill.tasks.figures import Figures, Values, row_mean

SPREAD = ("model_uncertainty_l1", "model_uncertainty_ratio", "model_uncertainty_spearman")


def fidelity(ensemble: Values, member: Values, student: Values, both: Values, unit: float = 1.0) -> Figures:
    """All fidelity figures from the rows of the three models and of `fidelity_rows`.

    - `diversity_explained` = 1 − member_kl ÷ mean_m KL(p_m ‖ q̄), where q̄ is the student's mixture (of regression the
      normal distribution of its moments): 0 is a student whose heads collapsed to their own mean, and 1 is perfect.
      Below 0 the heads are worse than their mean. The divisor, `collapsed_kl`, is MU_ensemble + KL(p̄ ‖ q̄) for classes,
      with p̄ and q̄ the mean probabilities; of regression mean_m KL(p_m ‖ p̄) stands in the place of MU_ensemble.
    - `deviation_correlation`: uncentered correlation of p_m − p̄ with q_m − q̄ over rows, members of a weight above 0 and
      classes, of the probabilities or, of regression, the means.
    - `model_uncertainty_l1` = Σ|MU_s − MU_e| ÷ Σ MU_e; `_ratio` = mean ÷ mean; `_spearman` over rows, and as its
      `_control` the Spearman of the student's total uncertainty with the ensemble's model uncertainty.
    - `member_kl`, `mean_kl` in nats; `agreement` of the pooled classes.
    - `gap_closed` = (NLL_member − NLL_student) ÷ (NLL_member − NLL_ensemble).

    Where some members do not answer some rows, each row is that of those who do, on both sides. Model uncertainty,
    deviations and `gap_closed` are of the rows that several answer, and None where there are none; the rest is of all.

    Args:
        student: of its heads that are compared with the ensemble; see `matched`.
        unit: of the uncertainties; see `Task.unit`.
    """
    figures: Figures = dict.fromkeys(FIDELITY)
    figures["mean_kl"] = float(both["mean_kl"].mean())
    if "prediction" in student:
        figures["agreement"] = float((student["prediction"] == ensemble["prediction"]).mean())
    figures |= diversity_figures(both, unit)
    if "model_uncertainty" in ensemble and "model_uncertainty" in student:
        uncertainty = ensemble["model_uncertainty"]
        figures |= spread_figures(student["model_uncertainty"], uncertainty, unit)
        total, known = where_known(student["total_uncertainty"], uncertainty)
        figures["model_uncertainty_spearman_control"] = spearman(total, known, unit)
    if "nll" in student:
        figures["gap_closed"] = _gap_closed(ensemble["nll"], member["nll"], student["nll"])
    return figures


def where_known(*values: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Values of rows, (N,) each, of those rows where all exist."""
    known = ~np.any([np.isnan(each) for each in values], axis=0)
    return values if known.all() else tuple(each[known] for each in values)


def _gap_closed(ensemble: NDArray[Any], member: NDArray[Any], student: NDArray[Any]) -> float | None:
    """From NLLs (N,), and the members' own (N, M), of the rows that several answer or, where all do, of all."""
    there = ~np.isnan(member)
    if not there.all():
        several = there.sum(1) > 1
        own = np.where(there, member, 0).sum(1)[several] / there.sum(1)[several]
        ensemble, student, member = ensemble[several], student[several], own
    if not len(member):
        return None
    return _ratio(member.mean() - student.mean(), member.mean() - ensemble.mean())


def diversity_figures(both: Values, unit: float) -> Figures:
    """The figures that need one head per member, from `fidelity_rows`; none where those have none."""
    if "member_kl" not in both:
        return {}
    unexplained = _ratio(both["member_kl"].mean(), both["collapsed_kl"].mean())
    return {
        "diversity_explained": None if unexplained is None else 1 - unexplained,
        "deviation_correlation": _correlation(both, unit),
        "member_kl": float(both["member_kl"].mean()),
        "collapsed_kl": float(both["collapsed_kl"].mean()),
    }


def _correlation(both: Values, unit: float) -> float | None:
    """Of deviations, on the rows that have any."""
    product, theirs, own = (row_mean(both[f"deviation_{name}"]) for name in ("product", "ensemble", "student"))
    return None if product is None or theirs is None or own is None else _ratio(product, np.sqrt(theirs * own), unit)


def spread_figures(theirs: NDArray[np.float64], uncertainty: NDArray[np.float64], unit: float) -> Figures:
    """l1, ratio and Spearman of `theirs` against the ensemble's model uncertainty, each (N,), on the rows where both
    exist; None where there are none."""
    theirs, uncertainty = where_known(theirs, uncertainty)
    if not len(uncertainty):
        return dict.fromkeys(SPREAD)
    return {
        "model_uncertainty_l1": _ratio(np.abs(theirs - uncertainty).mean(), uncertainty.mean(), unit),
        "model_uncertainty_ratio": _ratio(theirs.mean(), uncertainty.mean(), unit),
        "model_uncertainty_spearman": spearman(theirs, uncertainty, unit),
    }


def spearman(a: NDArray[np.float64], b: NDArray[np.float64], unit: float = 1.0) -> float | None:
    """Rank correlation, ties sharing their mean rank; None where one side is constant up to rounding."""
    if not len(a) or min(np.ptp(a), np.ptp(b)) <= ROUNDING * unit:
        return None
    one, other = (ranks(values, unit) - (len(values) + 1) / 2 for values in (a, b))
    return _ratio((one * other).sum(), np.sqrt((one**2).sum() * (other**2).sum()))


def _ratio(part: float, whole: float, unit: float = 1.0) -> float | None:
    """None where the whole is 0 up to rounding: what it would say is noise."""
    return float(part / whole) if abs(whole) > ROUNDING * unit else None
