"""`edistill settings`: every key of a settings file."""

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
    return [
        Key(key, _default(field), field.description)
        for key, field in fields_in(Settings, seen=set())
        if field.description is not None
    ]


def _default(field: FieldInfo) -> Any:
    """TOML has no tuples, and no word for nothing."""
    if field.is_required():
        return None
    return list(field.default) if isinstance(field.default, tuple) else field.default
