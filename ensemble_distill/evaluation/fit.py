"""Fitting a student's calibration to its ensemble, on rows that no member was trained on.

Members agree more on rows that they were trained on, so a student calibrated there would be too sure. No labels are
needed: the target is the ensemble, not the truth.
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
from ensemble_distill.predictive.answered import matched
from ensemble_distill.predictive.protocol import Predictive, Summary

REACH = math.log(8)  # bound on the factors' logarithms: a few numbers do not save a student that is farther off
TOLERANCE = 1e-4  # of those logarithms
STEEPEST, STEP = 0.5, 0.02  # bound and tolerance of the power
GAIN = 0.01  # least relative reduction of the error of model uncertainties for which a power is worth having
ROUNDING = 1e-12  # share of the total uncertainty


Pair = tuple[Predictive, Predictive]  # the predictions of the ensemble and the student for the same rows


def fit(ensemble: Predictive, student: Predictive, halves: tuple[Pair, Pair] | None = None) -> Calibration:
    """The calibration of a student, from its uncalibrated predictions for N rows and the ensemble's.

    For classes and labels, the temperature minimizes the mean KL(ensemble ‖ student) of the pooled predictions; then
    the spread equates the student's mean model uncertainty with the ensemble's. For regression, the factor of the
    variances equates their mean logarithms, and the spread equates the mean variances of the means. The spread is 1 for
    a student without model uncertainty or with equal heads.

    Last comes the power: the one that, with its own spread, brings each row's model uncertainty nearest to the
    ensemble's, by the mean absolute difference. It is 0 unless the fit on each half helps on the other half.

    Each factor lies between 1/8 and 8; beside a power, the spread may exceed these bounds. If some members do not
    answer some rows, those who do are compared with their own heads (see `matched`). The spread is then fitted on the
    rows that several members answer, and is 1 if there are none.

    Args:
        ensemble, student: the predictions.
        halves: the predictions for two halves of a few of these rows, few enough for hundreds of calibrations; None to
            fit no power.
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
    """The model uncertainties of ensemble and student, (N,); both are 0 on a row that one member answers."""

    def __init__(self, ensemble: Predictive, student: Predictive) -> None:
        self._ensemble, self._student = ensemble, student
        self._wanted = ensemble.summary().model if student.has_model_uncertainty else torch.empty(0)

    def differ(self) -> bool:
        """Whether both have model uncertainty beyond the rounding of equal heads."""
        if not self._wanted.numel():
            return False
        return all(
            bool(said.model.mean() > ROUNDING * said.total.mean()) for said in (self._ensemble.summary(), self._own)
        )

    def with_spread(self, by: Calibration) -> Calibration:
        """The calibration with the spread that equates the two mean model uncertainties."""

        def excess(log_spread: float) -> float:
            return float((self._moved(replace(by, spread=math.exp(log_spread))).mean() / self._wanted.mean()).log())

        # a power brings factors of its own, which the spread must undo
        reach = REACH + abs(by.power) * math.log(float(self._own.total.mean() / self._own.model.mean()))
        return replace(by, spread=math.exp(_root(excess, min(reach, -math.log(FAINTEST)))))

    def power(self, found: Calibration) -> float:
        """The power that, with its own spread, leaves the least error."""

        def error(power: float) -> float:
            return self.error(self.with_spread(replace(found, power=power)))

        bounds = (-STEEPEST, STEEPEST)
        return float(optimize.minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": STEP}).x)

    def error(self, by: Calibration) -> float:
        return float((self._moved(by) - self._wanted).abs().mean())

    @cached_property
    def _own(self) -> Summary:
        """The uncertainties of the uncalibrated student."""
        return matched(self._student, self._ensemble).summary()

    def _moved(self, by: Calibration) -> Tensor:
        return matched(self._student.calibrated(by), self._ensemble).summary().model


def _widened(ensemble: Predictive, student: Predictive) -> Calibration:
    """The calibration with the fitted temperature or, for regression, the fitted factor of the variances."""
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
    """The factors of a calibration that ended at a bound of their search.

    Beside a power, the bound of the spread is unknown here, so the spread is left out.
    """
    found = calibration.to_json()
    if found.pop("power", 0.0):
        del found["spread"]
    return [name for name, value in found.items() if abs(math.log(value)) > REACH - 10 * TOLERANCE]


def _root(rising: Callable[[float], float], reach: float) -> float:
    """The root of an increasing function within ± reach, or else the bound nearest to it."""
    if rising(reach) <= 0:
        return reach
    if rising(-reach) >= 0:
        return -reach
    return cast(float, optimize.brentq(rising, -reach, reach, xtol=TOLERANCE))


def _within(logarithm: float) -> float:
    return math.exp(min(max(logarithm, -REACH), REACH))
