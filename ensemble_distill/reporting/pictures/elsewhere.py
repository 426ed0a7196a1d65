"""Uncertainty in and out of distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.reporting.drawing import OTHER, Picture, drawn, shortened
from ensemble_distill.reporting.seen import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 30


def picture(seen: Seen) -> Picture | None:
    """The figure; None without OOD sets, or if no uncertainty is above 0."""
    if not seen.elsewhere:
        return None
    key, called = seen.uncertain
    split = seen.evaluation.split
    sets = {split: (seen.ensemble, seen.student)}
    sets |= {f"ood/{name}": values for name, values in seen.elsewhere.items()}  # a set may be named like the split
    known = {
        model: {name: _known(values[at][key]) for name, values in sets.items()}
        for at, model in enumerate((ENSEMBLE, STUDENT))
    }
    most = max((float(of.max()) for each in known.values() for of in each.values() if len(of)), default=0.0)
    if not most > 0:
        return None  # no uncertainty at all
    edges = np.linspace(0, most, BINS + 1)
    found = {
        model: {name: (np.histogram(of, edges)[0] / max(1, len(of))).tolist() for name, of in each.items()}
        for model, each in known.items()
    }

    def draw(figure: Figure) -> None:
        for axes, (model, each) in zip(figure.subplots(2, 1, sharex=True), found.items(), strict=True):
            for at, (name, shares) in enumerate(each.items()):
                color, label = OTHER if at == 0 else f"C{at - 1}", shortened(name.removeprefix("ood/"))
                axes.stairs(shares, edges, fill=at == 0, color=color, alpha=0.5 if at == 0 else 1, label=label)
            axes.set(ylabel="share of rows", title=seen.label(model))
        figure.axes[0].legend(frameon=False)
        figure.axes[-1].set(xlabel=f"{called} ({seen.evaluation.task.uncertainty_unit})")

    return Picture(
        "elsewhere",
        "Does it doubt what it has never seen?",
        f"Shares of rows by {called}: {split} in gray, other data as lines. The farther right the lines, the "
        "better the two are separated. AUROC: .5 is chance, 1 is perfect.",
        " ".join(_aurocs(seen, key)),
        {"edges": edges.tolist(), "shares": found},
        drawn(draw, 6.4, 4.6),
    )


def _known(values: NDArray[Any]) -> NDArray[Any]:
    """The values that exist, without those of rows that have none."""
    known: NDArray[Any] = values[~np.isnan(values)]
    return known


def _aurocs(seen: Seen, key: str) -> list[str]:
    told = []
    for name, models in seen.evaluation.ood.items():
        of = {model: (models[model] or {}).get(key) for model in (ENSEMBLE, STUDENT)}
        if None not in of.values():
            told.append(f"{name}: AUROC {of[STUDENT]:.3f}, the ensemble's {of[ENSEMBLE]:.3f}.")
    return told
