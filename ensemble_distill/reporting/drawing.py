"""One picture of a report, and how it is drawn."""

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

COLORS = {ENSEMBLE: "#1f5fa8", STUDENT: "#d1580b"}  # told apart in gray and by color-blind eyes too
OTHER = "#767676"

LONGEST = 24  # letters of a name

STYLE: Any = {
    "svg.hashsalt": "edistill",
    "svg.fonttype": "none",  # text stays text, in the reader's own fonts
    "text.parse_math": False,  # a name may have dollars
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
        reading: how it is read, a sentence or two.
        told: what it shows in words, for who can't see it.
        data: what it draws, as JSON.
        svg: itself.
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
    """A file of a picture; an SVG has the same bytes each time.

    Args:
        width, height: in inches.
        kind: "svg", "png" or "pdf".
        told: the "Title" and "Description" of an SVG.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # no window, whatever the user's backend is
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that matplotlib's font has not: the browser has them
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": "edistill", **(told or {})} if kind == "svg" else None
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def shortened(name: str) -> str:
    """As much of a name as a picture has room for: its end, which tells files of one folder apart."""
    name = one_line(name)
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
