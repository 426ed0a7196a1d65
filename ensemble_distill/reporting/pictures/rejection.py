"""The gain from rejecting the rows with the highest uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.evaluation.ties import ranks, shared
from ensemble_distill.reporting.drawing import COLORS, Picture, drawn
from ensemble_distill.reporting.seen import Seen
from ensemble_distill.tasks.figures import Values
from ensemble_distill.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = np.linspace(0, 0.9, 19)
QUALITY = {"correct": "accuracy", "squared_error": "root mean squared error", "nll": "NLL (nats)"}  # the first there is


def picture(seen: Seen) -> Picture | None:
    """The figure; None if rows have no labels."""
    key = next((name for name in QUALITY if name in seen.student), None)
    if key is None:
        return None
    task, unit = seen.evaluation.task, seen.evaluation.task.unit(seen.ensemble)
    found = {
        model: _kept(task, rows, key, unit) for model, rows in ((ENSEMBLE, seen.ensemble), (STUDENT, seen.student))
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for model, values in found.items():
            axes.plot(SHARES, values, color=COLORS[model], label=seen.label(model))
        axes.set(xlabel="share of rows that is rejected", ylabel=f"{QUALITY[key]} of the rest")
        axes.legend(frameon=False)

    tenths = [0, 2, 4, 10]  # 0, 10, 20 and 50 % rejected
    told = "; ".join(
        f"{seen.label(model)}: " + ", ".join(f"{values[at]:.4g} with {SHARES[at]:.0%} rejected" for at in tenths)
        for model, values in found.items()
    )
    return Picture(
        "rejection",
        "What does abstaining gain?",
        "The rows with the highest total uncertainty are rejected. The steeper the curve, the better it knows where it "
        "errs.",
        f"{QUALITY[key]}. {told}.",
        {"figure": QUALITY[key], "rejected": SHARES.tolist(), **found},
        drawn(draw, 5.6, 3.6),
    )


def _kept(task: Task, rows: Values, key: str, unit: float) -> list[float]:
    """The figure over the rows kept at each rejected share.

    Rows of equal uncertainty are in a random order.
    """
    values = task.comparable(rows[key]) if key == "squared_error" else rows[key]
    places = ranks(rows["total_uncertainty"], unit)
    each, order = shared(values.reshape(len(values), -1).mean(1), places), np.argsort(places)
    found: list[Any] = [each[order[: max(1, round(len(order) * (1 - share)))]].mean() for share in SHARES]
    return [float(np.sqrt(value)) if key == "squared_error" else float(value) for value in found]
