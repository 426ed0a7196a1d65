"""Describing the single files that commands write, without torch: see `part`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.inspecting.exported import exported
from ensemble_distill.inspecting.of_cache import of_cache
from ensemble_distill.inspecting.of_run import of_run
from ensemble_distill.inspecting.results import result
from ensemble_distill.inspecting.settings import settings_file

PART = "part"  # the kind of these descriptions


def part(path: Path) -> dict[str, Any] | None:
    """A file or folder inside a run or a cache, or a result that a command wrote; None for anything else.

    Returns:
        "what" it is, "facts" by name and, if there is more, a table of "columns" and "rows"; "next" is the command that
        comes next.

    Raises:
        EdistillError: its place implies a content that it does not have.
    """
    try:
        for tell in (of_run, of_cache, exported, result, settings_file):
            if (found := tell(path)) is not None:
                return {"kind": PART, **found}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EdistillError(f"{path} is damaged ({first_line(error)}). Restore it, or make it again.") from None
    return None
