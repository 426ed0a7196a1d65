"""Figures of a report that adapt to a dark screen."""

from __future__ import annotations

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.reporting.drawing import COLORS, OTHER

PAPER, INK = "#161618", "#ececf0"  # the colors of the page

INSTEAD = {
    "#ffffff": PAPER,
    "#000000": INK,
    COLORS[ENSEMBLE]: "#6fb0f5",
    COLORS[STUDENT]: "#f08a4b",
    OTHER: "#a3a3ab",
}


def _rules() -> str:
    # matplotlib writes a shape's colors into its style attribute, which only an important rule overrides. It writes
    # none for black text.
    each = [
        f'[style*="{of}: {light}"] {{ {of}: {dark} !important; }}'
        for light, dark in INSTEAD.items()
        for of in ("fill", "stroke")
    ]
    return "\n".join(["@media screen and (prefers-color-scheme: dark) {", f"text {{ fill: {INK}; }}", *each, "}"])


def with_dark(svg: bytes) -> bytes:
    """The figure with dark colors for viewers that ask for them; elsewhere it stays light.

    Args:
        svg: made by `drawn`, with a style sheet of its own.
    """
    return svg.replace(b"</style>", f"\n{_rules()}\n</style>".encode(), 1)
