"""A folder by what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def listed(folder: Path) -> dict[str, Any]:
    """Its files, with their sizes; hidden ones aside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {
        "facts": {"files": len(files), "bytes": sum(path.stat().st_size for path in files)},
        "columns": ["file", "bytes"],
        "rows": [[str(path.relative_to(folder)), f"{path.stat().st_size:,}"] for path in files],
    }
