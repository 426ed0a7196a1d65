"""`--log jsonl`: RUN/logs/train.jsonl, a JSON document with its step on each line; figures not finite are null."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ensemble_distill.logs import LogPlace
from ensemble_distill.runtime.files import append_line, read_whole, write_whole
from ensemble_distill.runtime.jsons import line_of_json, parse_json

NAME = "train.jsonl"


class LOG:
    """Appends each line as it comes, so that others can follow the file."""

    def __init__(self, place: LogPlace) -> None:
        self._folder, self._path = place.folder, place.folder / NAME

    def begin(self, step: int) -> None:
        """Keep the lines up to `step`, and drop later ones and a last line torn by a crash."""
        content = read_whole(self._path) if self._path.exists() else b""
        kept = b"".join(line for line in content.splitlines(keepends=True) if _is_up_to(line, step))
        write_whole(self._path, kept)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        told = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        append_line(self._path, line_of_json({"step": step, **told}), within=self._folder)

    def flush(self) -> None:
        """Does nothing: every line is in the file already."""

    def close(self, finished: bool) -> None:
        """Does nothing: no file is open."""


def _is_up_to(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and int(parse_json(line)["step"]) <= step
    except (ValueError, LookupError, TypeError):
        return False
