"""A folder of exported files that was moved away from its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.inspecting.listed import listed
from ensemble_distill.runs.exported_files import holds_exports, taken
from ensemble_distill.runs.folder import FORMATS
from ensemble_distill.runtime.words import shell
from ensemble_distill.settings import FILE_NAME


def exported(path: Path) -> dict[str, Any] | None:
    """A folder of exported files, or one for timm beside the settings that made it; None for any other.

    `next` refers to the file that stands for the folder, the one that `evaluate` and `predict` take.
    """
    if not path.is_dir():
        return None
    first = taken(path, lambda told: None) if holds_exports(path) else None
    if first is None and (path / FILE_NAME).is_file():
        first = next((path / name for name in FORMATS if (path / name).exists()), None)
    if first is None:
        return None
    return {"what": "exported files, away from their run", **listed(path), "next": f"edistill inspect {shell(first)}"}
