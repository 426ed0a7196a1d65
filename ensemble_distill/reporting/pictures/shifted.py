"""Quality and uncertainty under distribution shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.reporting.drawing import COLORS, Picture, drawn
from ensemble_distill.reporting.seen import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(seen: Seen) -> Picture | None:
    """The figure; None if the evaluation has no shifts."""
    shifts = seen.evaluation.shifts
    if shifts is None:
        return None
    figures = [name for name in seen.evaluation.task.shifted_shown if _values(seen, STUDENT, name) is not None]
    found = {figure: {model: _values(seen, model, figure) for model in COLORS} for figure in figures}

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(found), len(shifts), sharex=True, sharey="row", squeeze=False)
        for line, (name, of) in zip(grid, found.items(), strict=True):
            for axes, shift in zip(line, shifts, strict=True):
                for model, values in of.items():
                    if values is not None:
                        x, y = range(len(values[shift])), values[shift]
                        axes.plot(x, y, "o-", color=COLORS[model], label=seen.label(model), markersize=3)
            line[0].set_ylabel(name.replace("_", " "))
        for axes, shift in zip(grid[0], shifts, strict=True):
            axes.set_title(shift)
        grid[0][0].legend(frameon=False)
        figure.supxlabel("severity, 0 is none", fontsize=9)

    told = []
    for name, of in found.items():
        own = of[STUDENT] or {}
        told += [f"{name.replace('_', ' ')} under {shift}: {v[0]:.3g} to {v[-1]:.3g}" for shift, v in own.items()]
    return Picture(
        "shifted",
        "Does its doubt grow where it errs more?",
        "The same rows, distorted in five severities. Where quality falls, uncertainty should grow, as the ensemble's "
        "does.",
        f"Of {seen.run}, from none to the strongest: {'; '.join(told)}.",
        found,
        drawn(draw, 2.2 * len(shifts), 1.9 * len(found) + 0.6),
    )


def _values(seen: Seen, model: str, figure: str) -> dict[str, list[float]] | None:
    """A figure's values by shift, without shift and for each severity; None if one of them is missing."""
    plain: dict[str, Any] = dict(seen.evaluation.models[model] or {})
    found = {
        shift: [plain.get(figure), *((models[model] or {}).get(figure) for models in severities.values())]
        for shift, severities in (seen.evaluation.shifts or {}).items()
    }
    complete = {
        shift: [value for value in values if value is not None] for shift, values in found.items() if None not in values
    }
    return complete if len(complete) == len(found) else None
