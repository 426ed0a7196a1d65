"""A folder of exported files that stands by itself, moved away from its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.inspecting.listed import listed
from ensemble_distill.runs.exported_files import holds_exports, taken
from ensemble_distill.runs.folder import FORMATS
from ensemble_distill.settings import FILE_NAME


def exported(path: Path) -> dict[str, Any] | None:
    """What a folder is that holds exported files, or the settings that made them and a folder that timm loads; None for
    any other. `next` is of the file that stands for it, as `evaluate` and `predict` take it."""
    if not path.is_dir():
        return None
    first = taken(path, lambda told: None) if holds_exports(path) else None
    if first is None and (path / FILE_NAME).is_file():
        first = next((path / name for name in FORMATS if (path / name).exists()), None)
    if first is None:
        return None
    return {"what": "exported files, away from their run", **listed(path), "next": f"edistill inspect {first}"}
