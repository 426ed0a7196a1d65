"""`--log jsonl`: RUN/logs/train.jsonl, a JSON document a line with its step; a figure that is not finite is null."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ensemble_distill.logs import LogPlace
from ensemble_distill.runtime.files import append_line, read_whole, write_whole
from ensemble_distill.runtime.jsons import line_of_json, parse_json

NAME = "train.jsonl"


class LOG:
    """Lines are appended as they come, so that others can read along."""

    def __init__(self, place: LogPlace) -> None:
        self._folder, self._path = place.folder, place.folder / NAME

    def begin(self, step: int) -> None:
        """Keep the lines up to that step; a last one that was torn by a crash goes with the later ones."""
        content = read_whole(self._path) if self._path.exists() else b""
        kept = b"".join(line for line in content.splitlines(keepends=True) if _is_up_to(line, step))
        write_whole(self._path, kept)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        told = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        append_line(self._path, line_of_json({"step": step, **told}), within=self._folder)

    def flush(self) -> None:
        """Every line is in its file already."""

    def close(self, finished: bool) -> None:
        """Nothing is open."""


def _is_up_to(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and int(parse_json(line)["step"]) <= step
    except (ValueError, LookupError, TypeError):
        return False
