"""Uncertainty in and out of distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.reporting.drawing import OTHER, Picture, drawn
from ensemble_distill.reporting.seen import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 30


def picture(seen: Seen) -> Picture | None:
    """None without any set from elsewhere."""
    if not seen.elsewhere:
        return None
    key, called = seen.uncertain
    sides: dict[str, dict[str, NDArray[Any]]] = {
        "ensemble": {seen.evaluation.split: seen.ensemble[key]},
        seen.run: {seen.evaluation.split: seen.student[key]},
    }
    for name, (theirs, own) in seen.elsewhere.items():
        sides["ensemble"][name], sides[seen.run][name] = theirs[key], own[key]
    known = {side: {name: of[~np.isnan(of)] for name, of in sets.items()} for side, sets in sides.items()}
    most = max(float(of.max()) for sets in known.values() for of in sets.values() if len(of))
    edges = np.linspace(0, most or 1.0, BINS + 1)
    found = {
        side: {name: (np.histogram(of, edges)[0] / max(1, len(of))).tolist() for name, of in sets.items()}
        for side, sets in known.items()
    }

    def draw(figure: Figure) -> None:
        for axes, (side, sets) in zip(figure.subplots(2, 1, sharex=True), found.items(), strict=True):
            for at, (name, shares) in enumerate(sets.items()):
                color = OTHER if at == 0 else f"C{at - 1}"
                axes.stairs(shares, edges, fill=at == 0, color=color, alpha=0.5 if at == 0 else 1, label=name)
            axes.set(ylabel="share of rows", title=side)
        figure.axes[0].legend(frameon=False)
        figure.axes[-1].set(xlabel=f"{called} ({seen.evaluation.task.uncertainty_unit})")

    return Picture(
        "elsewhere",
        "Does it doubt what it has never seen?",
        f"Shares of rows by {called}: gray those of {seen.evaluation.split}, lines those from elsewhere. The farther "
        "right the lines, the "
        "better they are told apart. AUROC: .5 is chance, 1 all.",
        " ".join(_aurocs(seen, key)),
        {"edges": edges.tolist(), "shares": found},
        drawn(draw, 6.4, 4.6),
    )


def _aurocs(seen: Seen, key: str) -> list[str]:
    told = []
    for name, models in seen.evaluation.ood.items():
        of = {model: (models[model] or {}).get(key) for model in (ENSEMBLE, STUDENT)}
        if None not in of.values():
            told.append(f"{name}: AUROC {of[STUDENT]:.3f}, the ensemble's {of[ENSEMBLE]:.3f}.")
    return told
