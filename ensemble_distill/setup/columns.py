"""A guess at the meaning of a table's columns from its first rows, as an example for the user to correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble_distill.data import table
from ensemble_distill.data.arrow_parts import are_pictures
from ensemble_distill.data.image_folder import is_image
from ensemble_distill.data.patterns import files_of
from ensemble_distill.data.reading_arrow import arrow_schema
from ensemble_distill.data.saved_dataset import says_columns
from ensemble_distill.data.walk import there
from ensemble_distill.errors import EdistillError

LABELS = ("label", "labels", "target", "class", "y")  # common names of label columns
LOOKED = 20  # rows that are read
SEVERAL = 3  # mean number of words from which a column is text; categories have fewer


def likely_columns(source: str) -> dict[str, Any] | None:
    """An example of `data.columns`, with "…" for values that are not guessed; None if the file itself declares its
    columns.

    Raises:
        EdistillError: the file is not a table.
    """
    path = files_of(source)[0]
    if table.is_arrow(path) and says_columns(arrow_schema(path), path):
        return None
    header, block = table.first_rows(path)
    kinds = {name: _kind(path, block, name) for name in header}
    whole = next((one for kind in ("images", "text", "array") for one in header if kinds[one] == kind), None)
    named = next((name for name in header if name.lower() in LABELS and name != whole), None)
    others = [name for name in header if name != whole]
    label = named or (others[-1] if len(others) > (whole is None) else None)
    found: dict[str, Any] = {}
    if whole is not None:
        found[kinds[whole]] = whole
    else:
        found["inputs"] = [name for name in header if name != label]
        words = {name: ["…"] for name in found["inputs"] if kinds[name] == "words"}
        found |= {"categories": words} if words else {}
    if label is not None:
        found["labels"] = [label]
        found |= {"classes": ["…"]} if kinds[label] in ("words", "text") else {}
    return found


def _kind(path: Path, block: Mapping[str, Sequence[Any]], name: str) -> str:
    """ "images", "text", "array", "words" or "numbers"."""
    if table.is_arrow(path):
        kind = arrow_schema(path).field(name).type
        if are_pictures(kind):
            return "images"
        if kind.num_fields == 1 or str(kind).startswith("extension"):
            return "array"
    try:
        values = [value for value in block[name][:LOOKED] if value is not None]
    except (EdistillError, LookupError):  # nested columns, or no rows
        return "numbers"
    if any(isinstance(value, list) for value in values):
        return "array"
    texts = [value for value in values if isinstance(value, str) and not _is_number(value)]
    if not texts:
        return "numbers"
    if is_image(texts[0]) and there(path.parent / texts[0]):
        return "images"
    return "text" if sum(len(text.split()) for text in texts) >= SEVERAL * len(texts) else "words"


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
