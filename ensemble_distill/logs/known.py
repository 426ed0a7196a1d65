"""The id of a run at a service, kept beside its logs so that a resumed training continues the same run there."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.runtime.jsons import read_json, write_json


def known_id(path: Path) -> str | None:
    """The id in a file, None if there is no file yet; raises ValueError for a file without an id."""
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise ValueError(f"{path} holds no id; delete it to begin another run there")
    return str(found["id"])


def keep_id(path: Path, name: str) -> None:
    write_json(path, {"id": name})
