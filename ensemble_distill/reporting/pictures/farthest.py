"""The rows where student and ensemble differ most, with the prediction of each member and head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.each_head import Farthest
from ensemble_distill.reporting.drawing import Picture, drawn, shortened
from ensemble_distill.reporting.seen import Seen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIKELIEST = 10  # classes to show, if there are more


def picture(seen: Seen) -> Picture | None:
    """The figure; None if there are no such rows, for regression, and with a single class."""
    rows = seen.heads.farthest
    if not rows or "variance" in seen.student or len(rows[0].ensemble) < 2:
        return None
    names = seen.evaluation.task.names
    told = []
    for row in rows:
        theirs, own = (_called(names, of) for of in (row.ensemble, row.student))
        told.append(f"{seen.called[row.row]}: the members {theirs}, the student {own}")

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(rows), 3, width_ratios=[0.7, 1, 1], squeeze=False)
        for (look, left, right), row in zip(grid, rows, strict=True):
            _look(look, seen, row)
            shown = np.sort(np.argsort(-(row.ensemble + row.student), kind="stable")[:LIKELIEST])
            for axes, votes, who in ((left, row.members, "members"), (right, row.heads, "heads")):
                axes.imshow(votes[:, shown], cmap="Blues", vmin=0, vmax=1, aspect="auto")
                axes.set(ylabel=who, yticks=[])
                axes.set_xticks(
                    range(len(shown)), [shortened(_name(names, int(at))) for at in shown], rotation=45, ha="right"
                )

    return Picture(
        "farthest",
        "Where is it farthest from its ensemble?",
        "The rows with the largest KL(ensemble ‖ student), with a line for each member's and each head's prediction; "
        "darker is likelier.",
        "; ".join(told) + ".",
        [
            {
                "row": row.row,
                "name": seen.called[row.row],
                "mean_kl": row.mean_kl,
                "members": [None if np.isnan(of).any() else of.tolist() for of in row.members],
                "heads": row.heads.tolist(),
            }
            for row in rows
        ],
        drawn(draw, 6.4, 1.5 * len(rows) + 0.4),
    )


def _look(axes: Axes, seen: Seen, row: Farthest) -> None:
    axes.axis("off")
    pixels = seen.looks.get(row.row)
    title = seen.called[row.row]
    if pixels is None:
        axes.text(0.5, 0.5, shortened(title), ha="center", va="center")
        return
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray")
    axes.set_title(shortened(title), fontsize=8)


def _name(names: tuple[str, ...] | None, at: int) -> str:
    return str(at) if not names else names[at]


def _called(names: tuple[str, ...] | None, mean: NDArray[np.float64]) -> str:
    best = int(np.argmax(mean))
    return f"{_name(names, best)} ({mean[best]:.0%})"
