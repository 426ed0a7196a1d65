"""What a student's predictions are corrected by, fitted to its ensemble's on rows that no member was trained on.

On rows that members were trained on they agree more than elsewhere, and a student fitted there would be too sure. No
labels are needed: what is matched is the ensemble, not the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from scipy import optimize

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.answered import answering, matched
from ensemble_distill.predictive.protocol import Predictive

REACH = math.log(8)  # of the logarithms of what is fitted: a student farther off is not to be saved by two numbers
TOLERANCE = 1e-4  # of those logarithms
ROUNDING = 1e-12  # of the total uncertainty


def fit(ensemble: Predictive, student: Predictive) -> Calibration:
    """The calibration of a student from its predictions of N rows as it was trained, and the ensemble's of the same.

    Classes: the temperature minimizes the mean KL(ensemble ‖ student) of the pooled predictions; then the spread makes
    the student's mean model uncertainty the ensemble's. Numbers: the variances' factor makes their mean logarithm the
    ensemble's, and the spread the mean variance of the means. A student without model uncertainty has no spread, one
    whose heads are equal none that helps: 1.

    Each lies within a factor of 8. Where some members do not answer some rows, those who do are compared with their own
    heads (see `matched`), and the spread is fitted on the rows that several answer: where there are none it is 1.
    """
    several = answering(ensemble)

    def softened(by: Calibration) -> Predictive:
        return matched(student.calibrated(by), ensemble)

    def uncertain(said: Predictive) -> float:
        model = said.summary().model
        return float((model if several is None else model[several > 1]).mean())

    wider, own = ensemble.log_width(), matched(student, ensemble).log_width()
    if wider is not None and own is not None:
        found = Calibration(variance=_within(float((wider - own).mean())))
    else:
        pooled = ensemble.pooled()

        def divergence(log_temperature: float) -> float:
            by = Calibration(temperature=math.exp(log_temperature))
            return float(pooled.kl(softened(by).pooled()).mean())

        best = optimize.minimize_scalar(
            divergence, bounds=(-REACH, REACH), method="bounded", options={"xatol": TOLERANCE}
        )
        found = Calibration(temperature=math.exp(best.x))
    if not student.has_model_uncertainty or (several is not None and not (several > 1).any()):
        return found
    wanted, mine = uncertain(ensemble), uncertain(matched(student, ensemble))
    # below it is what rounding makes of equal heads
    if any(u <= ROUNDING * float(one.summary().total.mean()) for u, one in ((wanted, ensemble), (mine, student))):
        return found

    def excess(log_spread: float) -> float:
        spread = Calibration(found.temperature, math.exp(log_spread), found.variance)
        return math.log(uncertain(softened(spread)) / wanted)

    return Calibration(found.temperature, math.exp(_root(excess)), found.variance)


def at_limit(calibration: Calibration) -> list[str]:
    """The factors of a calibration that ended at a bound of their search."""
    found = calibration.to_json().items()
    return [name for name, value in found if abs(math.log(value)) > REACH - 10 * TOLERANCE]


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function is 0 in ± REACH, or the bound that it is nearest to 0 at."""
    if rising(REACH) <= 0:
        return REACH
    if rising(-REACH) >= 0:
        return -REACH
    return cast(float, optimize.brentq(rising, -REACH, REACH, xtol=TOLERANCE))


def _within(logarithm: float) -> float:
    return math.exp(min(max(logarithm, -REACH), REACH))
