"""A figure of a report where the reader's screen is dark."""

from __future__ import annotations

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.reporting.drawing import COLORS, OTHER

PAPER, INK = "#161618", "#ececf0"  # the page's own

INSTEAD = {
    "#ffffff": PAPER,
    "#000000": INK,
    COLORS[ENSEMBLE]: "#6fb0f5",
    COLORS[STUDENT]: "#f08a4b",
    OTHER: "#a3a3ab",
}


def _rules() -> str:
    # matplotlib writes a shape's colors into its style attribute, which a rule overrides as an important one alone.
    # It writes none for black text.
    each = [
        f'[style*="{of}: {light}"] {{ {of}: {dark} !important; }}'
        for light, dark in INSTEAD.items()
        for of in ("fill", "stroke")
    ]
    return "\n".join(["@media screen and (prefers-color-scheme: dark) {", f"text {{ fill: {INK}; }}", *each, "}"])


def with_dark(svg: bytes) -> bytes:
    """The same figure, which turns dark by itself; where a viewer does not ask for that, all of it stays light.

    Args:
        svg: by `drawn`, with its own style sheet.
    """
    return svg.replace(b"</style>", f"\n{_rules()}\n</style>".encode(), 1)
