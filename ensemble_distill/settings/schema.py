"""The keys that tables of settings may have, from their types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def kebab(name: str) -> str:
    """A field's name as a file spells it, without the final underscore that avoids Python keywords."""
    return name.rstrip("_").replace("_", "-")


def fields_in(
    section: type[BaseModel], before: str = "", seen: set[type[BaseModel]] | None = None
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key with its field, tables before their keys; NAME stands for a name that a file chooses.

    Args:
        seen: collects the tables visited, each of which is visited once; None to visit a table wherever it occurs.
    """
    if seen is not None:
        seen.add(section)
    for name, field in section.model_fields.items():
        key = f"{before}{kebab(name)}"
        yield key, field
        for table in tables_in(field.annotation):
            if seen is None or table not in seen:
                yield from fields_in(table, f"{key}.NAME." if is_named(field.annotation) else f"{key}.", seen)


def is_named(annotation: Any) -> bool:
    """Whether the type is a mapping whose keys a file chooses."""
    return getattr(annotation, "__origin__", None) is dict


def tables_in(annotation: Any) -> list[type[BaseModel]]:
    """The tables that occur in a type, however deeply nested."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(table for part in get_args(annotation) for table in tables_in(part)))
