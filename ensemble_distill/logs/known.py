"""By what id a service knows a run, kept beside it, so that a resumed training is the same run there."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.runtime.jsons import read_json, write_json


def known_id(path: Path) -> str | None:
    """None where it has none yet. Raises ValueError for a file that says something else."""
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise ValueError(f"{path} holds no id; delete it to begin another run there")
    return str(found["id"])


def keep_id(path: Path, name: str) -> None:
    write_json(path, {"id": name})
