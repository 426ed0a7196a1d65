"""What a student's predictions are corrected by, fitted to its ensemble's on rows that no member was trained on.

On rows that members were trained on they agree more than elsewhere, and a student fitted there would be too sure. No
labels are needed: what is matched is the ensemble, not the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import cast

import torch
from scipy import optimize
from torch import Tensor

from ensemble_distill.facts import FAINTEST, Calibration
from ensemble_distill.predictive.answered import answering, matched
from ensemble_distill.predictive.protocol import Predictive, Summary

REACH = math.log(8)  # of the logarithms of what is fitted: a student farther off is not to be saved by a few numbers
TOLERANCE = 1e-4  # of those logarithms
STEEPEST, STEP = 0.5, 0.02  # of the power
GAIN = 0.01  # of the error of the rows' model uncertainties, below which a power is not worth its place
ROUNDING = 1e-12  # of the total uncertainty


Pair = tuple[Predictive, Predictive]  # what the ensemble and the student say of some rows


def fit(ensemble: Predictive, student: Predictive, halves: tuple[Pair, Pair] | None = None) -> Calibration:
    """The calibration of a student from its predictions of N rows as it was trained, and the ensemble's of the same.

    Args:
        halves: of so few of these rows that hundreds of calibrations of them take no time; without them no power is
            sought.

    Classes: the temperature minimizes the mean KL(ensemble ‖ student) of the pooled predictions; then the spread makes
    the student's mean model uncertainty the ensemble's. Numbers: the variances' factor makes their mean logarithm the
    ensemble's, and the spread the mean variance of the means. A student without model uncertainty has no spread, one
    whose heads are equal none that helps: 1.

    Last the power: the one which, with its own spread, brings each row's model uncertainty nearest to the ensemble's,
    in the mean of absolute differences. It is 0 unless what one half says helps on the other, both ways.

    Each factor lies within a factor of 8. Where some members do not answer some rows, those who do are compared with
    their own heads (see `matched`), and the spread is fitted on the rows that several answer: where there are none it
    is 1.
    """
    found, both = _widened(ensemble, student), _Uncertainties(ensemble, student)
    if not both.differ():
        return found
    return both.with_spread(found if halves is None else replace(found, power=_power(found, *halves)))


def _power(found: Calibration, *halves: Pair) -> float:
    one, other = (_Uncertainties(*half) for half in halves)
    if not (one.differ() and other.differ()):
        return 0.0
    powers = []
    for here, there in ((one, other), (other, one)):
        power = here.power(found)
        without, beside = (here.with_spread(replace(found, power=one)) for one in (0.0, power))
        if there.error(beside) > (1 - GAIN) * there.error(without):
            return 0.0
        powers.append(power)
    return round(sum(powers) / len(powers), 2)


class _Uncertainties:
    """Model uncertainties, the ensemble's and the student's, of the rows that several members answer, (N,)."""

    def __init__(self, ensemble: Predictive, student: Predictive) -> None:
        self._ensemble, self._student, self._several = ensemble, student, answering(ensemble)
        self._wanted = self._of(ensemble) if student.has_model_uncertainty else torch.empty(0)

    def differ(self) -> bool:
        """Whether there are any, and more than rounding makes of equal heads."""
        if not self._wanted.numel():
            return False
        own = matched(self._student, self._ensemble)
        return all(
            bool(model.mean() > ROUNDING * said.summary().total.mean())
            for model, said in ((self._wanted, self._ensemble), (self._of(own), own))
        )

    def with_spread(self, by: Calibration) -> Calibration:
        """A calibration with the spread that makes the student's mean the ensemble's."""

        def excess(log_spread: float) -> float:
            return float((self._moved(replace(by, spread=math.exp(log_spread))).mean() / self._wanted.mean()).log())

        # a power makes factors by itself, which the spread takes back
        reach = REACH + abs(by.power) * math.log(float(self._own.total.mean() / self._own.model.mean()))
        return replace(by, spread=math.exp(_root(excess, min(reach, -math.log(FAINTEST)))))

    def power(self, found: Calibration) -> float:
        """The one which leaves the least error with its own spread."""

        def error(power: float) -> float:
            return self.error(self.with_spread(replace(found, power=power)))

        bounds = (-STEEPEST, STEEPEST)
        return float(optimize.minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": STEP}).x)

    def error(self, by: Calibration) -> float:
        return float((self._moved(by) - self._wanted).abs().mean())

    @cached_property
    def _own(self) -> Summary:
        """Of the student as it was trained."""
        return matched(self._student, self._ensemble).summary()

    def _moved(self, by: Calibration) -> Tensor:
        return self._of(matched(self._student.calibrated(by), self._ensemble))

    def _of(self, said: Predictive) -> Tensor:
        model = said.summary().model
        return model if self._several is None else model[self._several > 1]


def _widened(ensemble: Predictive, student: Predictive) -> Calibration:
    """The temperature or, of numbers, the variances' factor."""
    wider, own = ensemble.log_width(), matched(student, ensemble).log_width()
    if wider is not None and own is not None:
        return Calibration(variance=_within(float((wider - own).mean())))
    pooled = ensemble.pooled()

    def divergence(log_temperature: float) -> float:
        softened = matched(student.calibrated(Calibration(temperature=math.exp(log_temperature))), ensemble)
        return float(pooled.kl(softened.pooled()).mean())

    best = optimize.minimize_scalar(divergence, bounds=(-REACH, REACH), method="bounded", options={"xatol": TOLERANCE})
    return Calibration(temperature=math.exp(best.x))


def at_limit(calibration: Calibration) -> list[str]:
    """The factors of a calibration that ended at a bound of their search; of a spread beside a power no bound is known
    here."""
    found = calibration.to_json()
    if found.pop("power", 0.0):
        del found["spread"]
    return [name for name, value in found.items() if abs(math.log(value)) > REACH - 10 * TOLERANCE]


def _root(rising: Callable[[float], float], reach: float) -> float:
    """Where a rising function is 0 in ± reach, or the bound that it is nearest to 0 at."""
    if rising(reach) <= 0:
        return reach
    if rising(-reach) >= 0:
        return -reach
    return cast(float, optimize.brentq(rising, -reach, reach, xtol=TOLERANCE))


def _within(logarithm: float) -> float:
    return math.exp(min(max(logarithm, -REACH), REACH))
