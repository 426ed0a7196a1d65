"""`edistill settings`: every key of a settings file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ensemble_distill.settings import Settings
from ensemble_distill.settings.messages import kebab


@dataclass(frozen=True)
class Key:
    """A key of the file.

    Attributes:
        key: dotted, as `--set` takes it.
        default: as TOML has it; None where the key is left out by default.
        what: it is.
    """

    key: str
    default: Any
    what: str


def settings_keys() -> list[Key]:
    """Every key that a settings file may have, in its order; the keys of a table that several sections can have once,
    where it comes first."""
    return list(_keys(Settings, "", set()))


def _keys(section: type[BaseModel], before: str, seen: set[type[BaseModel]]) -> Iterator[Key]:
    seen.add(section)
    for name, field in section.model_fields.items():
        key = f"{before}{kebab(name)}"
        tables = _tables_in(field.annotation)
        if field.description is not None:
            yield Key(key, _default(field), field.description)
        for table in tables - seen:
            yield from _keys(table, f"{key}.NAME." if _named(field.annotation) else f"{key}.", seen)


def _named(annotation: Any) -> bool:
    """Whether it is of tables by a name that a file chooses."""
    return getattr(annotation, "__origin__", None) is dict


def _tables_in(annotation: Any) -> set[type[BaseModel]]:
    """What stands for tables in a type, however it is put together."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*map(_tables_in, get_args(annotation)))


def _default(field: FieldInfo) -> Any:
    """TOML has no tuples, and no word for nothing."""
    if field.is_required():
        return None
    return list(field.default) if isinstance(field.default, tuple) else field.default
