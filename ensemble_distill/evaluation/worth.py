"""How many members of its ensemble a model is worth, and how many it costs.

In prediction, worth is the deep-ensemble equivalent of Ashukha et al. 2020 (arXiv:2002.06470).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.fidelity import where_known
from ensemble_distill.runtime.words import members_told
from ensemble_distill.tasks.figures import Figures

NOTHING = 1e-9  # a mean model uncertainty below this share counts as 0
ROUNDING = 1e-6  # relative difference below which a figure equals the ensemble's
RUNGS = ("prediction", "fidelity", "uncertainty", "uncertainty_control")
COSTS = {"latency": "latency_ms", "macs": "macs", "parameters": "parameters"}


Column = list[float]


@dataclass(frozen=True)
class Ladder:
    """Means over sub-ensembles of k members, for k = 1, …, M.

    If some members do not answer some rows, a member that answers a row replaces one that does not. On a row that fewer
    than k members answer, the sub-ensemble is those. The last k is then the most members that answer a row.

    Attributes:
        nll: the NLL of the pooled prediction; None without labels.
        mean_kl: KL(ensemble ‖ sub-ensemble) of the pooled predictions.
        model_uncertainty_l1: Σ|c·MU − MU_e| ÷ Σ MU_e, where c equates the mean with the ensemble's; 1 for one member,
            which has no model uncertainty. None if the ensemble has none.
    """

    nll: Column | None
    mean_kl: Column
    model_uncertainty_l1: Column | None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Worth:
    """What one model is worth, in members; None for a figure that does not exist.

    Attributes:
        prediction: worth by NLL.
        fidelity: worth by KL(ensemble ‖ model).
        uncertainty: worth by the l1 error of its model uncertainty, after one factor equates its mean with the
            ensemble's.
        uncertainty_control: worth by that error of its total uncertainty in place of the model uncertainty.
        beyond: the names of those that are better than the ensemble's own.
        cost: its latency, multiply-accumulates and parameters ÷ a member's, each None if unknown. None as a whole if
            all are, as when no members are at hand.
    """

    prediction: float | None
    fidelity: float | None
    uncertainty: float | None
    uncertainty_control: float | None
    beyond: tuple[str, ...]
    cost: Mapping[str, float | None] | None

    @property
    def cost_in_members(self) -> float:
        """Its latency ÷ a member's; NaN if unknown."""
        latency = None if self.cost is None else self.cost["latency"]
        return math.nan if latency is None else latency

    @property
    def falls_short(self) -> list[str]:
        """Those of "prediction" and "uncertainty" in which it is worth fewer members than it costs.

        What is better than the ensemble is left out, since nobody knows how many members it is worth.
        """
        return [name for name in self.known if getattr(self, name) < self.cost_in_members and name not in self.beyond]

    @property
    def known(self) -> list[str]:
        """Those of "prediction" and "uncertainty" that exist."""
        return [name for name in ("prediction", "uncertainty") if getattr(self, name) is not None]

    def is_worth_fewer(self, student: Worth) -> bool:
        """Whether it is worth fewer members than a student in all in which that falls short."""
        pairs = [(getattr(self, name), getattr(student, name)) for name in student.falls_short]
        return all(own is not None and own < theirs for own, theirs in pairs)

    def told(self, members: int) -> str:
        """Its worth in prediction and in uncertainty, in words, for an ensemble of `members`; empty if unknown."""
        told: list[str] = []
        for name in self.known:
            told.append(f"{self.counted(name)}{'' if told else f' of {members} members'} in {name}")
        return " and ".join(told)

    def counted(self, rung: str) -> str | None:
        """Its worth in one of `RUNGS`, in words; None if unknown."""
        value: float | None = getattr(self, rung)
        return None if value is None else members_told(value, rung in self.beyond)

    def to_figures(self) -> Figures:
        """All numbers as figures, with costs named as in `cost_latency`."""
        found: Figures = {name: getattr(self, name) for name in RUNGS}
        return found | {f"cost_{name}": None if self.cost is None else self.cost[name] for name in COSTS}

    def to_json(self) -> dict[str, Any]:
        cost = None if self.cost is None else dict(self.cost)
        return {**vars(self), "beyond": list(self.beyond), "cost": cost}


def worth(
    ladder: Ladder,
    ensemble: Mapping[str, NDArray[Any]],
    model: Mapping[str, NDArray[Any]],
    mean_kl: float | None,
    own: Figures | None,
    member: Figures | None,
    compared: Mapping[str, NDArray[Any]] | None = None,
) -> Worth:
    """What one model is worth on the rows of the ladder.

    Args:
        ladder: the figures of sub-ensembles.
        ensemble, model: values of each row.
        mean_kl: KL(ensemble ‖ model) of the pooled predictions.
        own, member: costs; see `cost_shares`.
        compared: the values of those of the model's heads that are compared with the ensemble; see `matched`. None if
            all are.
    """
    compared = model if compared is None else compared
    uncertain = ladder.model_uncertainty_l1
    found: dict[str, tuple[float | None, Sequence[float] | None]] = {
        "prediction": (float(model["nll"].mean()) if "nll" in model else None, ladder.nll),
        "fidelity": (mean_kl, ladder.mean_kl),
    }
    for name, of in (("uncertainty", "model_uncertainty"), ("uncertainty_control", "total_uncertainty")):
        there = uncertain is not None and of in compared
        found[name] = scaled_l1(compared[of], ensemble["model_uncertainty"]) if there else None, uncertain
    read = {name: None if f is None or steps is None else rung(f, steps) for name, (f, steps) in found.items()}
    beyond = [name for name, (f, steps) in found.items() if f is not None and steps and is_beyond(f, steps)]
    return Worth(**read, beyond=tuple(beyond), cost=cost_shares(own, member))


def rung(figure: float, steps: Sequence[float]) -> float | None:
    """The k at which a figure (lower is better) lies on a ladder of k = 1 … M, with linear interpolation between steps.

    It is M if the figure is as good as that of all members or better, and otherwise 0 if it is worse than that of one
    member. A ladder that rises in places is first made monotone; see `_falling`. Between an infinite step and the next,
    k is that of the infinite one. None if the figure is NaN.
    """
    if math.isnan(figure):
        return None
    if figure <= steps[-1] + _rounding(steps[-1]):
        return float(len(steps))
    steps = _falling(steps)
    if figure > steps[0] + _rounding(steps[0]):
        return 0.0
    for k, step in enumerate(steps, start=1):
        if figure >= step:  # the first step that is as good
            above = steps[k - 2] if k > 1 else step
            if figure == step or above == step:
                return float(k)
            return k - 1 + (above - figure) / (above - step) if math.isfinite(above) else k - 1.0
    return float(len(steps))


def _falling(steps: Sequence[float]) -> Sequence[float]:
    """The nearest steps that never rise, with the same last step and the same infinite ones.

    If sub-ensembles are drawn, two steps near the top differ by less than two draws of one step do. Without smoothing,
    chance would decide which step is the first that is as good as a figure.
    """
    from scipy.optimize import isotonic_regression

    infinite = 1 + max((at for at, step in enumerate(steps) if step == math.inf), default=-1)
    start, drawn, last = [math.inf] * infinite, steps[infinite:-1], steps[-1]
    if not drawn or not all(map(math.isfinite, steps[infinite:])):
        return steps
    nearest = isotonic_regression(drawn, increasing=False).x
    return [*start, *np.maximum(nearest, last).tolist(), last]


def is_beyond(figure: float, steps: Sequence[float]) -> bool:
    """Whether a figure is better than that of all members together."""
    return figure < steps[-1] - _rounding(steps[-1])


def _rounding(step: float) -> float:
    return ROUNDING * max(1.0, abs(step)) if math.isfinite(step) else 0.0


def cost_shares(own: Figures | None, member: Figures | None) -> dict[str, float | None] | None:
    """What a model costs in members: each of its costs ÷ a member's, None if unknown. None as a whole if all are."""
    if own is None or member is None:
        return None
    found: dict[str, float | None] = {}
    for name, figure in COSTS.items():
        mine, theirs = own[figure], member[figure]
        found[name] = None if mine is None or not theirs else mine / theirs
    return None if all(share is None for share in found.values()) else found


def scaled_l1(theirs: NDArray[Any], ensemble: NDArray[Any]) -> float:
    """Σ|c·u − u_e| ÷ Σ u_e with c = Σ u_e ÷ Σ u: the error that remains once the mean is right; 1 if u is 0.

    Both are compared on the rows where both exist.
    """
    theirs, ensemble = where_known(theirs, ensemble)
    if not theirs.sum() > NOTHING * ensemble.sum():
        return 1.0
    return float(np.abs(theirs * (ensemble.sum() / theirs.sum()) - ensemble).sum() / ensemble.sum())
