"""The keys that tables of settings may have, by their types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def kebab(name: str) -> str:
    """A field's name as a file spells it; those of Python's own words end in an underscore."""
    return name.rstrip("_").replace("_", "-")


def fields_in(
    section: type[BaseModel], before: str = "", seen: set[type[BaseModel]] | None = None
) -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field, tables before what they hold; a name that a file chooses is NAME.

    Args:
        seen: is given the tables that were walked, and those in it are not walked again; None for all, wherever they
            stand.
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
    """Whether it is of tables, or values, by a name that a file chooses."""
    return getattr(annotation, "__origin__", None) is dict


def tables_in(annotation: Any) -> list[type[BaseModel]]:
    """What stands for tables in a type, however it is put together."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(table for part in get_args(annotation) for table in tables_in(part)))
