"""Whether predictions are right as often as their confidence says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.reporting.drawing import COLORS, OTHER, Picture, drawn
from ensemble_distill.reporting.seen import Seen
from ensemble_distill.tasks.classification import bin_of
from ensemble_distill.tasks.figures import Values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10


def picture(seen: Seen) -> Picture | None:
    """The figure; None for other tasks than classification, or if rows have no labels."""
    if not {"confidence", "correct"} <= seen.student.keys():
        return None
    found = {ENSEMBLE: _binned(seen.ensemble), STUDENT: _binned(seen.student)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1, linestyle="--")
        for model, bins in found.items():
            color = COLORS[model]
            x, y, rows = zip(*((of["confidence"], of["accuracy"], of["rows"]) for of in bins), strict=True)
            axes.plot(x, y, color=color, linewidth=1, label=seen.label(model))
            axes.scatter(x, y, [10 + 90 * one / sum(rows) for one in rows], color=color, clip_on=False)
        axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
        axes.legend(frameon=False)

    told = "; ".join(
        f"{seen.label(model)}: " + ", ".join(f"{of['accuracy']:.0%} right at {of['confidence']:.0%}" for of in bins)
        for model, bins in found.items()
    )
    return Picture(
        "reliability",
        "Is it right as often as it claims?",
        "Answers in ten bins of equal width, by confidence. Below the dashed line they are overconfident, above it "
        "underconfident. The larger the dot, the more answers it stands for.",
        told,
        found,
        drawn(draw, 5.2, 3.8),
    )


def _binned(rows: Values) -> list[dict[str, Any]]:
    confidence, correct = rows["confidence"], rows["correct"]
    at = bin_of(confidence, BINS)
    return [
        {
            "rows": int((at == one).sum()),
            "confidence": float(confidence[at == one].mean()),
            "accuracy": float(correct[at == one].mean()),
        }
        for one in np.unique(at)
    ]
