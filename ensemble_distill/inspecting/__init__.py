"""What the files are that the commands write, one by one, told without torch: see `part`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.inspecting.exported import exported
from ensemble_distill.inspecting.of_cache import of_cache
from ensemble_distill.inspecting.of_run import of_run
from ensemble_distill.inspecting.results import result
from ensemble_distill.inspecting.settings import settings_file

PART = "part"  # the kind of such a record


def part(path: Path) -> dict[str, Any] | None:
    """A file or a folder inside a run or a cache, or a result that a command wrote; None for anything else.

    Returns:
        "what" it is, "facts" by name, and where there is more than these a table of "columns" and "rows"; "next" is the
        command that comes next.

    Raises:
        EdistillError: it is one by its place, and does not hold what it should.
    """
    try:
        for tell in (of_run, of_cache, exported, result, settings_file):
            if (found := tell(path)) is not None:
                return {"kind": PART, **found}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EdistillError(f"{path} is damaged ({first_line(error)}). Restore it, or make it again.") from None
    return None
