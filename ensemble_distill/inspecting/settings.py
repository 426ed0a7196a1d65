"""Settings files: those that users wrote, and the copies that commands wrote beside their output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.runs.folder import ARGS
from ensemble_distill.runtime.words import shell
from ensemble_distill.settings import FILE_NAME, load_settings


def settings_file(path: Path) -> dict[str, Any] | None:
    """The main settings of a file; None for a file of another name."""
    if path.name not in (FILE_NAME, ARGS) or not path.is_file():
        return None
    settings = load_settings(path)
    copy, here = path.name == ARGS, f"{path.absolute().parent}/"
    return {
        "what": "the settings that what is beside it was made with" if copy else "settings",
        "facts": {
            name: value.removeprefix(here)
            for name, value in {
                "task": settings.task,
                "teachers": settings.teachers.path,
                "splits": ", ".join(settings.splits()),
                "views": f"{settings.views.count} by {settings.views.transform}",
                "student": settings.student.model or "none",
                "method": settings.train.method,
                "cache": settings.output.cache,
                "runs": settings.output.runs,
            }.items()
        },
        "next": f"edistill inspect {shell(path.parent)}" if copy else "edistill doctor",
    }
