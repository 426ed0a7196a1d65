"""What the small text files beside a member's weights say: read once, bounded, and refused in one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import DOCUMENT, read_whole
from ensemble_distill.runtime.jsons import parse_json

MOST_ENTRIES = 10**6  # a config that names the 21,841 classes of ImageNet has a tenth of them


def read_said(file: Path) -> str:
    """The text of a file that was there when its folder was listed.

    Raises:
        EdistillError: it is gone, may not be read, or is no UTF-8.
    """
    try:
        return read_whole(file, DOCUMENT).decode()
    except OSError as error:
        raise EdistillError(
            f"{file} cannot be read: {error.strerror}. Run the command again when nothing writes to the teachers."
        ) from None
    except ValueError as error:
        raise EdistillError(f"{file} is not UTF-8 text: {error}. Copy it again from where it came.") from None


def json_said(file: Path) -> Any:
    """Raises EdistillError where the file cannot be read or is not JSON."""
    try:
        return parse_json(read_said(file))
    except ValueError as error:
        raise EdistillError(f"{file} is not valid JSON: {error}. Copy it again from where it came.") from None


def yaml_said(file: Path) -> Any:
    """Plain YAML, which builds nothing but texts, numbers, lists and tables.

    Anchors may stand for each other, and a few lines of them for billions of entries: those are counted before any is
    made.

    Raises:
        EdistillError: the file cannot be read, is no plain YAML, or stands for more than a million entries.
    """
    import yaml

    text = read_said(file)
    try:
        if _entries(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST_ENTRIES:
            raise ValueError(f"its anchors stand for more than {MOST_ENTRIES:,} entries")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise EdistillError(
            f"{file} is not the plain YAML that timm's train.py writes: {_told(error)}. Fix it by hand, or "
            f"move the checkpoint out of the folder and use it alone with teachers.model."
        ) from None


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value)


KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a list of numbers": _numbers,
    "a table": lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value),
    "a list or a table": lambda value: isinstance(value, list | dict),
}


def refuse_other_kinds(file: Path, record: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Refuse values of another kind than a file's reader takes; what is null or absent says nothing.

    Args:
        kinds: of each key, one of `KINDS`.

    Raises:
        EdistillError: one is of another.
    """
    for key, kind in kinds.items():
        value = record.get(key)
        if value is not None and not KINDS[kind](value):
            shown = repr(value)[:60]
            raise EdistillError(f"{file} has {key} {shown}, and {key} is {kind}. Fix it, or remove it.")


def _entries(node: Any, known: dict[int, int]) -> int:
    """How many entries a node of YAML stands for, each anchor counted as often as it is named."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_ENTRIES + 1  # until it is known: one that holds itself has no end
    parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_entries(part, known) for part in parts)
    return known[id(node)]


def _told(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
