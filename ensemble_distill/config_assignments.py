"""Settings given on the command line: `--set KEY=VALUE`, and where in the file's tables they go."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ensemble_distill.config_messages import kebab, unknown
from ensemble_distill.errors import EdistillError


def place(values: dict[str, Any], key: str, value: Any, settings: type[BaseModel]) -> None:
    """Put a value where a dotted key says; None takes away what is there.

    Raises:
        EdistillError: there is no such key, or one of its tables is none.
    """
    *tables, last = key.split(".")
    here = values
    for table in tables:
        here = here.setdefault(_spelled(here, table), {})
        if not isinstance(here, dict):
            raise EdistillError(f"--set {key}: {table} is {here!r}, not a table. Set {table} itself, as a whole.")
    if value is None:
        if here.pop(_spelled(here, last), None) is None and (told := unknown(key, settings)) is not None:
            raise EdistillError(f"--set {key}=: {told}")
    else:
        here[_spelled(here, last)] = value


def _spelled(table: Mapping[str, Any], key: str) -> str:
    """The key as the table has it: `batch-size` and `batch_size` are one."""
    return next((there for there in table if kebab(there) == kebab(key)), key)


def parse_assignment(text: str) -> tuple[str, Any]:
    """`train.epochs=3` to ("train.epochs", 3); values are TOML, a bare word is a string, and nothing is None: unset.

    Raises:
        EdistillError: there is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise EdistillError(f"--set {text}: write KEY=VALUE, for instance --set train.epochs=3.")
    if not value.strip():
        return key.strip(), None
    try:
        parsed = tomllib.loads(f"value = {value}")
        if len(parsed) > 1:
            raise EdistillError(f"--set {text}: one key at a time; pass --set again for the next.")
        return key.strip(), parsed["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
