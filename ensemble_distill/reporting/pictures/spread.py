"""Of regression: whether errors are as large as predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_distill.reporting.drawing import ENSEMBLE, OTHER, STUDENT, Picture, drawn
from ensemble_distill.reporting.seen import Seen
from ensemble_distill.tasks.figures import Values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10


def picture(seen: Seen) -> Picture | None:
    """None where answers are no numbers, or rows have no targets."""
    if not {"squared_error", "variance"} <= seen.student.keys():
        return None
    found = {"ensemble": _binned(seen.ensemble), seen.run: _binned(seen.student)}
    most = max(max(of["deviation"], of["error"]) for bins in found.values() for of in bins)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, most], [0, most], color=OTHER, linewidth=1, linestyle="--")
        for (name, bins), color in zip(found.items(), (ENSEMBLE, STUDENT), strict=True):
            axes.plot([of["deviation"] for of in bins], [of["error"] for of in bins], "o-", color=color, label=name)
        axes.set(xlabel="predicted standard deviation", ylabel="root mean squared error")
        axes.legend(frameon=False)

    told = "; ".join(
        f"{name}: " + ", ".join(f"{of['error']:.3g} where {of['deviation']:.3g} was predicted" for of in bins)
        for name, bins in found.items()
    )
    return Picture(
        "spread",
        "Are its errors as large as it says?",
        "Answers in ten bins of equally many, by the standard deviation that was predicted. Above the dashed line "
        "errors are larger than "
        "predicted.",
        told,
        found,
        drawn(draw, 5.2, 3.8),
    )


def _binned(rows: Values) -> list[dict[str, Any]]:
    variance, squared = rows["variance"].ravel(), rows["squared_error"].ravel()
    parts = np.array_split(np.argsort(variance, kind="stable"), min(BINS, len(variance)))
    return [
        {
            "rows": len(part),
            "deviation": float(np.sqrt(variance[part].mean())),
            "error": float(np.sqrt(squared[part].mean())),
        }
        for part in parts
    ]
