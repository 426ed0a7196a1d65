"""Read the small text files beside a member's weights, within bounds and with errors a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import DOCUMENT, read_whole
from ensemble_distill.runtime.jsons import parse_json

MOST_ENTRIES = 10**6  # a config that names the 21,841 classes of ImageNet has a tenth of this


def read_said(file: Path) -> str:
    """The text of a file that was there when its folder was listed.

    Raises:
        EdistillError: it is gone, cannot be read, or is not UTF-8 text of reasonable size.
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
    """Parse a JSON file; raises EdistillError if it cannot be read or is not JSON."""
    try:
        return parse_json(read_said(file))
    except ValueError as error:
        raise EdistillError(f"{file} is not valid JSON: {error}. Copy it again from where it came.") from None


def yaml_said(file: Path) -> Any:
    """Parse plain YAML, which builds only texts, numbers, lists, tables and the like.

    A few lines of nested anchors can stand for billions of entries, so entries are counted before any is built.

    Raises:
        EdistillError: the file cannot be read, is not plain YAML, or stands for more than a million entries.
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
    """Refuse values of a kind that the file's reader does not take; null and absent values pass.

    Args:
        file: the file, for messages.
        record: its content.
        kinds: the expected kind for each key, from `KINDS`.

    Raises:
        EdistillError: a value is of another kind.
    """
    for key, kind in kinds.items():
        value = record.get(key)
        if value is not None and not KINDS[kind](value):
            shown = repr(value)[:60]
            raise EdistillError(f"{file} has {key} {shown}, and {key} is {kind}. Fix it, or remove it.")


def _entries(node: Any, known: dict[int, int]) -> int:
    """The number of entries a YAML node stands for, with an anchor counted each time it is used."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_ENTRIES + 1  # until counted: a node that contains itself is endless
    parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_entries(part, known) for part in parts)
    return known[id(node)]


def _told(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
