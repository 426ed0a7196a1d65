"""Tokenizers in JSON documents: each text is stored once, in a table of its own, however many members refer to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TABLE = "tokenizers"  # key of a document's table that maps each sha256 to its text
NAMED = "tokenizer"
CONTENT = "content"


def gathered(record: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the texts of its tokenizers moved to the `TABLE`; unchanged if it holds none.

    Args:
        record: nested tables and lists of plain values, as `to_json` of a record returns.
    """
    found: dict[str, str] = {}
    plain = _changed(record, lambda one: _taken(one, found))
    return {**plain, TABLE: dict(sorted(found.items()))} if found else dict(record)


def scattered(record: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `gathered`; a tokenizer whose text is missing gets None.

    Raises:
        ValueError: the `TABLE` is not a mapping.
    """
    texts = record.get(TABLE)
    if texts is None:
        return dict(record)
    if not isinstance(texts, Mapping):
        raise ValueError(f"its {TABLE} are no table")
    rest = {key: value for key, value in record.items() if key != TABLE}
    whole: dict[str, Any] = _changed(rest, lambda one: {**one, CONTENT: texts.get(one.get("sha256"))})
    return whole


def brief(record: Any) -> Any:
    """The document for display: tokenizers by their sha256 alone."""
    plain = _changed(record, lambda one: _taken(one, {}))
    return {key: value for key, value in plain.items() if key != TABLE} if isinstance(plain, dict) else plain


def _taken(one: Mapping[str, Any], found: dict[str, str]) -> dict[str, Any]:
    content = one.get(CONTENT)
    if content is not None:
        found[one["sha256"]] = content
    return {key: value for key, value in one.items() if key != CONTENT}


def _changed(value: Any, change: Any) -> Any:
    """A copy with `change` applied to every mapping under the key "tokenizer"."""
    if isinstance(value, Mapping):
        return {
            key: change(inner) if key == NAMED and isinstance(inner, Mapping) else _changed(inner, change)
            for key, inner in value.items()
        }
    return type(value)(_changed(inner, change) for inner in value) if type(value) in (list, tuple) else value
