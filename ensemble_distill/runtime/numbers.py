"""How figures are formatted for people."""

from __future__ import annotations


def number(value: float | None) -> str:
    """A figure for a table: four decimals, or three digits if that would show only zeros; a dash for None."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def short(value: float | None) -> str:
    """A count to three digits, such as 12.5M; a dash for None."""
    if value is None:
        return "–"
    rounded, unit = float(f"{value:.3g}"), ""
    for unit in ("", "k", "M", "G", "T"):
        if abs(rounded) < 1000 or unit == "T":
            break
        rounded /= 1000
    return f"{rounded:.4g}{unit}"
