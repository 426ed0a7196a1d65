"""The figures of a report, one per file: each decides whether it applies, and provides its data and its description."""

from __future__ import annotations

from importlib import import_module

from ensemble_distill.reporting.drawing import Picture
from ensemble_distill.reporting.seen import Seen

ORDER = ("ladder", "reliability", "spread", "agreement", "elsewhere", "rejection", "shifted", "heads", "farthest")


def pictures(seen: Seen) -> list[Picture]:
    """The figures that apply, in the order of the page."""
    found = (import_module(f"{__name__}.{name}").picture(seen) for name in ORDER)
    return [each for each in found if each is not None]
