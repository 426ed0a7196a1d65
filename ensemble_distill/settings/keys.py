"""`edistill settings`: all keys of a settings file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from ensemble_distill.settings import Settings
from ensemble_distill.settings.schema import fields_in


@dataclass(frozen=True)
class Key:
    """A key of the file.

    Attributes:
        key: dotted, as in `--set`.
        default: as TOML spells it; None if the key is absent by default.
        what: its description.
    """

    key: str
    default: Any
    what: str


def settings_keys() -> list[Key]:
    """All keys of a settings file, in its order; the keys of a table that occurs in several sections are listed
    once."""
    return [
        Key(key, _default(field), field.description)
        for key, field in fields_in(Settings, seen=set())
        if field.description is not None
    ]


def _default(field: FieldInfo) -> Any:
    """The default in TOML, which has no tuples and no null."""
    if field.is_required():
        return None
    return list(field.default) if isinstance(field.default, tuple) else field.default
