"""The content of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def listed(folder: Path) -> dict[str, Any]:
    """The files of a folder with their sizes, without hidden ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {
        "facts": {"files": len(files), "bytes": sum(path.stat().st_size for path in files)},
        "columns": ["file", "bytes"],
        "rows": [[str(path.relative_to(folder)), f"{path.stat().st_size:,}"] for path in files],
    }
