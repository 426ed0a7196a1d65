"""For regression: whether errors are as large as predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.evaluation.ties import ranks, shared
from ensemble_distill.reporting.drawing import COLORS, OTHER, Picture, drawn
from ensemble_distill.reporting.seen import Seen
from ensemble_distill.tasks.figures import Values
from ensemble_distill.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10


def picture(seen: Seen) -> Picture | None:
    """The figure; None for other tasks than regression, or if rows have no targets."""
    if not {"squared_error", "variance"} <= seen.student.keys():
        return None
    task = seen.evaluation.task
    unit = task.unit(seen.ensemble)
    found = {ENSEMBLE: _binned(task, seen.ensemble, unit), STUDENT: _binned(task, seen.student, unit)}
    each = " Each target counts in its own standard deviations." if task.names else ""
    most = max(max(of["deviation"], of["error"]) for bins in found.values() for of in bins)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, most], [0, most], color=OTHER, linewidth=1, linestyle="--")
        for model, bins in found.items():
            color = COLORS[model]
            axes.plot(
                [of["deviation"] for of in bins],
                [of["error"] for of in bins],
                "o-",
                color=color,
                label=seen.label(model),
            )
        axes.set(xlabel="predicted standard deviation", ylabel="root mean squared error")
        axes.legend(frameon=False)

    told = "; ".join(
        f"{seen.label(model)}: "
        + ", ".join(f"{of['error']:.3g} where {of['deviation']:.3g} was predicted" for of in bins)
        for model, bins in found.items()
    )
    return Picture(
        "spread",
        "Are its errors as large as it claims?",
        "Answers in ten bins of equal count, by predicted standard deviation. Above the dashed line errors are larger "
        f"than predicted.{each}",
        told,
        found,
        drawn(draw, 5.2, 3.8),
    )


def _binned(task: Task, rows: Values, unit: float) -> list[dict[str, Any]]:
    """Bins of the answers by variance; equal ones are in a random order."""
    variance, squared = (task.comparable(rows[name]).ravel() for name in ("variance", "squared_error"))
    places = ranks(variance, unit)
    squared = shared(squared, places)
    parts = np.array_split(np.argsort(places), min(BINS, len(variance)))
    return [
        {
            "rows": len(part),
            "deviation": float(np.sqrt(variance[part].mean())),
            "error": float(np.sqrt(squared[part].mean())),
        }
        for part in parts
    ]
