"""A folder of exported files that stands by itself, moved away from its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.inspecting.listed import listed
from ensemble_distill.runs.folder import FORMATS
from ensemble_distill.settings import FILE_NAME


def exported(path: Path) -> dict[str, Any] | None:
    """What a folder is that holds exported files and the settings that made them; None for any other."""
    if not (path / FILE_NAME).is_file():
        return None
    first = next((path / name for name in FORMATS if (path / name).exists()), None)
    if first is None:
        return None
    return {"what": "exported files, away from their run", **listed(path), "next": f"edistill inspect {first}"}
