"""The student's model uncertainty against the ensemble's, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.reporting.drawing import COLORS, OTHER, Picture, drawn
from ensemble_distill.reporting.seen import Seen
from ensemble_distill.runtime.spread import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 2000  # points
FLOOR = 1e-5  # of the largest value: smaller ones are drawn there


def picture(seen: Seen) -> Picture | None:
    """The figure; None if one of the two models has no model uncertainty."""
    if "model_uncertainty" not in seen.compared or "model_uncertainty" not in seen.ensemble:
        return None
    theirs, own = seen.ensemble["model_uncertainty"], seen.compared["model_uncertainty"]
    there = ~np.isnan(theirs) & ~np.isnan(own)
    theirs, own = theirs[there], own[there]
    if not len(theirs) or not theirs.max() > 0:
        return None
    some = spread(len(theirs), MOST)
    unit, fidelity = seen.evaluation.task.uncertainty_unit, seen.evaluation.fidelity
    least = max(float(theirs.max()) * FLOOR, float(min(theirs.min(), own.min())))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = [least, float(max(theirs.max(), own.max()))]
        axes.plot(ends, ends, color=OTHER, linewidth=1, linestyle="--")
        points = [np.maximum(values[some], least) for values in (theirs, own)]
        axes.scatter(points[0], points[1], s=6, color=COLORS[STUDENT], alpha=0.4, linewidths=0)
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.set(xlabel=f"the ensemble's ({unit})", ylabel=f"{seen.label(STUDENT)}'s ({unit})")

    ratio, rank = fidelity["model_uncertainty_ratio"], fidelity["model_uncertainty_spearman"]
    told = [
        f"The student's mean is {float(own.mean()):.3g}, the ensemble's {float(theirs.mean()):.3g}",
        *([] if ratio is None else [f"a ratio of {ratio:.2f}"]),
        *([] if rank is None else [f"the rank correlation is {rank:.3f}"]),
    ]
    return Picture(
        "agreement",
        "Does it doubt where the ensemble does?",
        "One point per row, by model (epistemic) uncertainty. On the dashed line both are equally uncertain; below it "
        "the student is less so.",
        "; ".join(told) + ".",
        {"rows": len(theirs), "ensemble": theirs[some].tolist(), "student": own[some].tolist()},
        drawn(draw, 5.2, 4.2),
    )
