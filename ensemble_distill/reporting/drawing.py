"""One picture of a report, and how it is drawn."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENSEMBLE, STUDENT, OTHER = "#1f5fa8", "#d1580b", "#767676"  # told apart in gray and by color-blind eyes too

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


def drawn(draw: Callable[[Figure], None], width: float = 6.4, height: float = 3.6) -> bytes:
    """An SVG, the same bytes each time.

    Args:
        width, height: in inches.
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
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "edistill"})
    return file.getvalue()
