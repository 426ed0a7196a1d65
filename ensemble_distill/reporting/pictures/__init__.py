"""The figures of a report, one a file: each says whether it applies, what it draws, and what that is in words."""

from __future__ import annotations

from importlib import import_module

from ensemble_distill.reporting.drawing import Picture
from ensemble_distill.reporting.seen import Seen

ORDER = ("ladder", "reliability", "spread", "agreement", "elsewhere", "rejection", "shifted", "heads", "farthest")


def pictures(seen: Seen) -> list[Picture]:
    """Those that apply, in the order of the page."""
    found = (import_module(f"{__name__}.{name}").picture(seen) for name in ORDER)
    return [each for each in found if each is not None]
