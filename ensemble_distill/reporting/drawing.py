"""A figure of a report, and how it is drawn."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.runtime.names import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {ENSEMBLE: "#1f5fa8", STUDENT: "#d1580b"}  # distinct in gray, and to color-blind readers
OTHER = "#767676"

LONGEST = 24  # letters of a name

STYLE: Any = {
    "svg.hashsalt": "edistill",
    "svg.fonttype": "none",  # keep text as text, in the reader's own fonts
    "text.parse_math": False,  # names may contain dollar signs
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Attributes:
        key: its name in `report.json`.
        title: what it shows.
        reading: how to read it, in a sentence or two.
        told: its content in words, for readers who cannot see it.
        data: the values it draws, for JSON.
        svg: the figure.
    """

    key: str
    title: str
    reading: str
    told: str
    data: Any
    svg: bytes


def drawn(
    draw: Callable[[Figure], None],
    width: float = 6.4,
    height: float = 3.6,
    kind: str = "svg",
    told: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a figure; an SVG is the same each time.

    Args:
        width, height: in inches.
        kind: "svg", "png" or "pdf".
        told: the "Title" and "Description" of an SVG.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # opens no window, whatever the user's backend
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's font lacks, but the browser has
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": "edistill", **(told or {})} if kind == "svg" else None
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def shortened(name: str) -> str:
    """The end of a name that is too long for a figure, since the end tells files of one folder apart."""
    name = one_line(name)
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
