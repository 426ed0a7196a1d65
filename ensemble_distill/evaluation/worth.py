"""How many members of its ensemble a model is worth, beside how many it costs.

In prediction this is the deep-ensemble equivalent of Ashukha et al. 2020 (arXiv:2002.06470).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.fidelity import where_known
from ensemble_distill.tasks.figures import Figures

NOTHING = 1e-9  # a mean model uncertainty below this share is 0
ROUNDING = 1e-6  # of a figure: nearer to the ensemble's is the same
RUNGS = ("prediction", "fidelity", "uncertainty", "uncertainty_control")
COSTS = {"latency": "latency_ms", "macs": "macs", "parameters": "parameters"}


Column = list[float]


@dataclass(frozen=True)
class Ladder:
    """Means over sub-ensembles of k members, for k = 1, …, M.

    Where some members do not answer some rows, a member that does stands in for one that does not; of a row that fewer
    than k answer it is those; and the last k is the most that answer a row.

    Attributes:
        nll: of the pooled prediction; None without labels.
        mean_kl: KL(ensemble ‖ sub-ensemble) of pooled predictions.
        model_uncertainty_l1: Σ|c·MU − MU_e| ÷ Σ MU_e, c such that the mean is the ensemble's; 1 for one member, which
            has none. None where the ensemble has none.
    """

    nll: Column | None
    mean_kl: Column
    model_uncertainty_l1: Column | None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Worth:
    """Of one model, in members; None where a figure does not exist.

    Attributes:
        prediction: by the NLL.
        fidelity: by KL(ensemble ‖ model).
        uncertainty: by the l1 error of its model uncertainty, once one factor has made its mean the ensemble's.
        uncertainty_control: the same of its total uncertainty.
        beyond: which of these are better than the ensemble's own.
        cost: its latency, multiply-accumulates and parameters ÷ a member's; None where the members are not at hand, and
            each where it is not known of a member.
    """

    prediction: float | None
    fidelity: float | None
    uncertainty: float | None
    uncertainty_control: float | None
    beyond: tuple[str, ...]
    cost: Mapping[str, float | None] | None

    @property
    def cost_in_members(self) -> float:
        """Its latency ÷ a member's; nan where that is not known."""
        latency = None if self.cost is None else self.cost["latency"]
        return math.nan if latency is None else latency

    @property
    def falls_short(self) -> list[str]:
        """In what it is worth fewer members than it costs: "prediction", "uncertainty". Of what is better than the
        ensemble nobody knows how many members it is worth."""
        each = {"prediction": self.prediction, "uncertainty": self.uncertainty}
        return [
            name
            for name, members in each.items()
            if members is not None and members < self.cost_in_members and name not in self.beyond
        ]

    def told(self, members: int) -> str:
        """In prediction and in uncertainty, of so many members; empty where neither is known."""
        told: list[str] = []
        for name in ("prediction", "uncertainty"):
            if (count := self.counted(name)) is not None:
                told.append(f"{count}{'' if told else f' of {members} members'} in {name}")
        return " and ".join(told)

    def counted(self, rung: str) -> str | None:
        """One of `RUNGS` in words; None where it is not known."""
        value: float | None = getattr(self, rung)
        if value is None:
            return None
        return f"more than {value:.0f}" if rung in self.beyond else f"{value:.1f}"

    def to_figures(self) -> Figures:
        """A figure each, costs as `cost_latency`."""
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
    """What one model is worth on the rows that the ladder is of.

    Args:
        ensemble, model: values of each row.
        mean_kl: KL(ensemble ‖ model) of the pooled predictions.
        own, member: costs; see `cost`.
        compared: the model's of its heads that are compared with the ensemble, see `matched`; None for all.
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
    """The k at which a figure (less is better) lies on the ladder of k = 1 … M, between its steps by linear
    interpolation: M for as good as all or better, else 0 for worse than one member. Where more members are worse the
    steps are read as `_falling`, and between an infinite step and the next it is that of the infinite one. None for
    what is no number."""
    if math.isnan(figure):
        return None
    if figure <= steps[-1] + _rounding(steps[-1]):
        return float(len(steps))
    steps = _falling(steps)
    if figure > steps[0] + _rounding(steps[0]):
        return 0.0
    for k, step in enumerate(steps, start=1):
        if figure >= step:  # the first that is as good; the one before was not
            above = steps[k - 2] if k > 1 else step
            if figure == step or above == step:
                return float(k)
            return k - 1 + (above - figure) / (above - step) if math.isfinite(above) else k - 1.0
    return float(len(steps))


def _falling(steps: Sequence[float]) -> Sequence[float]:
    """The nearest steps that never rise, and end as they do: of many sub-ensembles some are drawn, and near the top a
    step differs from the next by less than from another draw. The first step as good as a figure would be one that
    chance put there."""
    from scipy.optimize import isotonic_regression

    infinite = 1 + max((at for at, step in enumerate(steps) if step == math.inf), default=-1)
    start, drawn, last = [math.inf] * infinite, steps[infinite:-1], steps[-1]
    if not drawn or not all(map(math.isfinite, steps[infinite:])):
        return steps
    nearest = isotonic_regression(drawn, increasing=False).x
    return [*start, *np.maximum(nearest, last).tolist(), last]


def is_beyond(figure: float, steps: Sequence[float]) -> bool:
    """Whether a figure is better than that of all members."""
    return figure < steps[-1] - _rounding(steps[-1])


def _rounding(step: float) -> float:
    return ROUNDING * max(1.0, abs(step)) if math.isfinite(step) else 0.0


def cost_shares(own: Figures | None, member: Figures | None) -> dict[str, float | None] | None:
    """What a model costs in members: each of its costs ÷ a member's, None where it is not known. None as a whole where
    none is."""
    if own is None or member is None:
        return None
    found: dict[str, float | None] = {}
    for name, figure in COSTS.items():
        mine, theirs = own[figure], member[figure]
        found[name] = None if mine is None or not theirs else mine / theirs
    return None if all(share is None for share in found.values()) else found


def scaled_l1(theirs: NDArray[Any], ensemble: NDArray[Any]) -> float:
    """Σ|c·u − u_e| ÷ Σ u_e with c = Σ u_e ÷ Σ u: what is left to be wrong once the mean is right. 1 for a u of 0. Of
    the rows where both exist."""
    theirs, ensemble = where_known(theirs, ensemble)
    if not theirs.sum() > NOTHING * ensemble.sum():
        return 1.0
    return float(np.abs(theirs * (ensemble.sum() / theirs.sum()) - ensemble).sum() / ensemble.sum())
