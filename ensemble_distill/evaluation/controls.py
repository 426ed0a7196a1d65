"""Controls for fidelity figures: students that imitate no member, and the ensemble compared with itself."""

from __future__ import annotations

import numpy as np

from ensemble_distill.evaluation.fidelity import diversity_figures, spread_figures, where_known
from ensemble_distill.evaluation.halves import halves_figures
from ensemble_distill.evaluation.names import CONTROLS, FIDELITY
from ensemble_distill.evaluation.ties import ROUNDING
from ensemble_distill.tasks.figures import Figures, Values


def controls(
    ensemble: Values,
    student: Values,
    both: Values,
    offsets: Values | None,
    halves: Values | None,
    unit: float = 1.0,
) -> dict[str, Figures]:
    """{control: figures}, with the names of `fidelity`.

    Figures of the pooled prediction are None, since the controls leave it unchanged. So are figures that the student
    itself cannot have: of diversity without a head per member, of model uncertainty with a single head.

    - `collapsed`: every head predicts the mean of all heads. `diversity_explained` and the model uncertainty are 0, and
      the l1 is 1.
    - `offsets`: that mean plus random offsets, the same on every row, with the ensemble's mean model uncertainty.
    - `total_uncertainty`: the student's total uncertainty, times the one factor that makes the ratio 1, in place of its
      model uncertainty.
    - `halves`: one half of the members against the other; see `halves_figures`. The halves do not imitate each other's
      members, so they have no diversity figures.

    Args:
        ensemble, student: values from `prediction_rows`, the student's as in `fidelity`.
        both: values from `fidelity_rows`.
        offsets: values from `Offsets`; None if there is no such fake.
        halves: values from `halves_rows`; None with fewer than 4 members.
        unit: the unit of uncertainties; see `Task.unit`.
    """
    found: dict[str, Figures] = {name: dict.fromkeys(FIDELITY) for name in CONTROLS}
    if "model_uncertainty" in ensemble and "model_uncertainty" in student:
        uncertainty, total = where_known(ensemble["model_uncertainty"], student["total_uncertainty"])
        found["collapsed"] |= spread_figures(np.zeros_like(uncertainty), uncertainty, unit)
        if len(total) and total.mean() > ROUNDING * unit:
            scaled = total * (uncertainty.mean() / total.mean())
            found["total_uncertainty"] |= spread_figures(scaled, uncertainty, unit)
        if offsets is not None:
            found["offsets"] |= spread_figures(offsets["model_uncertainty"], offsets["ensemble"], unit)
    if "member_kl" in both:
        collapsed = {
            "member_kl": both["collapsed_kl"],
            "deviation_student": np.zeros(1),
            "deviation_product": np.zeros(1),
        }
        found["collapsed"] |= diversity_figures({**both, **collapsed}, unit)
        if offsets is not None:
            found["offsets"] |= diversity_figures(offsets, unit)
    if halves is not None:
        found["halves"] |= halves_figures(halves, unit)
    return found
