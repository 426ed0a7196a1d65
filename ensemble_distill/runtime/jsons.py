"""JSON as the project writes and reads it: free of terminal control characters, and with one error for invalid text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemble_distill.runtime.files import DOCUMENT, read_whole, write_text
from ensemble_distill.runtime.names import harmless_json


def json_text(record: Any, *, only_ascii: bool = False, default: Callable[[Any], Any] | None = None) -> str:
    """JSON for people: indented, in the given order, safe to show in a terminal; NaN is refused."""
    text = json.dumps(record, indent=2, ensure_ascii=only_ascii, allow_nan=False, default=default)
    return harmless_json(text) + "\n"


def line_of_json(record: Any) -> str:
    """JSON for programs: one line, safe to show in a terminal."""
    return harmless_json(json.dumps(record, ensure_ascii=False))


def parse_json(content: bytes | str, *, once: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        once: refuse tables with a duplicate key; otherwise the last value counts.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    text = content if isinstance(content, str) else content.decode()
    try:
        return json.loads(text, object_pairs_hook=_each_once if once else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands in it {names.count(twice)} times, and each is to stand once")
    return table


def write_json(path: Path, record: Any, *, within: Path | None = None) -> None:
    """Write a record as JSON; see `files.write_whole`."""
    write_text(path, json_text(record), within=within)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or larger than `files.DOCUMENT`.
        OSError: it cannot be read.
    """
    return parse_json(read_whole(path, DOCUMENT))
