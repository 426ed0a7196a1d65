"""A figure of the students' worth against their cost: above the line they are worth having."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.compared import Compared
from ensemble_distill.evaluation.names import SUBENSEMBLES
from ensemble_distill.reporting.drawing import drawn, shortened
from ensemble_distill.reporting.targets import refuse_target
from ensemble_distill.runtime.files import write_output
from ensemble_distill.runtime.names import one_line
from ensemble_distill.tasks.figures import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png", ".pdf")
PANELS = ("prediction", "uncertainty")
COST = "cost_latency"


@dataclass(frozen=True)
class Point:
    """A model, in members of its ensemble; the spread is None if it was not trained with several seeds."""

    name: str
    cost: float
    worth: float
    spread: float | None
    color: str


def refuse_picture(path: Path) -> None:
    """Raise EdistillError if a figure cannot be written to this path."""
    refuse_target("--picture", path, FORMATS)


def draw_pareto(found: Compared, path: Path) -> None:
    """Draw worth against cost, with a panel each for prediction and uncertainty.

    Raises:
        EdistillError: no model has both a worth and a cost.
    """
    panels = {rung: list(_points(found, rung)) for rung in PANELS}
    panels = {rung: points for rung, points in panels.items() if points}
    if not panels:
        raise EdistillError(
            "There is nothing to plot: no run has both a worth and a cost. Costs are measured where the members are "
            "available (teachers.path), and worth takes two members or more that answer the same rows."
        )

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, (rung, points) in zip(grid[0], panels.items(), strict=True):
            _draw(axes, rung, points, found.members)

    kind = path.suffix.lower().removeprefix(".")
    write_output(path, drawn(draw, 4.2 * len(panels), 4, kind, _told(panels)))


def _points(found: Compared, rung: str) -> Iterator[Point]:
    worth = found.evaluations[0].worth or {}
    for name in SUBENSEMBLES:
        figures = each.to_figures() if (each := worth.get(name)) else {}
        yield from _point(name, figures, {}, rung, "0.5")
    for at, side in enumerate(found.sides):  # the same color in both panels
        yield from _point(side.name, side.figures["worth"], side.spread["worth"], rung, f"C{at}")


def _point(name: str, figures: Figures, spread: Figures, rung: str, color: str) -> Iterator[Point]:
    cost, worth = figures.get(COST), figures.get(rung)
    if cost is not None and worth is not None:
        yield Point(name, cost, worth, spread.get(rung), color)


def _draw(axes: Axes, rung: str, points: list[Point], members: int) -> None:
    most = max(members, *(point.cost for point in points)) * 1.05
    axes.plot([0, most], [0, most], color="0.6", linewidth=1, linestyle="--")
    axes.annotate("worth = cost", (most * 0.62, most * 0.62), (0, -14), textcoords="offset points", color="0.4")
    for point in points:
        marker = "s" if point.name in SUBENSEMBLES else "o"
        axes.errorbar(point.cost, point.worth, yerr=point.spread, fmt=marker, color=point.color, capsize=3)
        axes.annotate(
            shortened(point.name), (point.cost, point.worth), (6, 5), textcoords="offset points", color=point.color
        )
    axes.set(
        xlabel="costs, in members (latency)",
        ylabel=f"worth in {rung}, in members",
        xlim=(0, most),
        ylim=(0, members * 1.05),
    )


def _told(panels: dict[str, list[Point]]) -> dict[str, str]:
    """The figure in words, for readers who cannot see it; names are escaped, since XML allows no control characters."""
    told = [
        f"{rung}: "
        + ", ".join(f"{one_line(point.name)} is worth {point.worth:.1f} and costs {point.cost:.1f}" for point in points)
        for rung, points in panels.items()
    ]
    return {"Title": "Worth against cost, in members", "Description": "; ".join(told)}
