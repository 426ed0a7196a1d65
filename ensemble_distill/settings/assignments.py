"""Settings from the command line, `--set KEY=VALUE`, and their place in the file's tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import DOCUMENT, read_whole
from ensemble_distill.settings.messages import parts_of, unknown
from ensemble_distill.settings.schema import kebab


def place(values: dict[str, Any], key: str, value: Any, settings: type[BaseModel]) -> None:
    """Store a value under a dotted key; None removes the key.

    Raises:
        EdistillError: the key does not exist, or a part before its last is not a table.
    """
    *tables, last = parts_of(key)
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
    """The key as the table spells it, since `batch-size` and `batch_size` are the same."""
    return next((there for there in table if kebab(there) == kebab(key)), key)


def read_toml(path: Path) -> dict[str, Any]:
    """A settings file as nested tables.

    Raises:
        EdistillError: it is not a regular file, cannot be read, or is not TOML in UTF-8.
    """
    if path.is_dir():
        raise EdistillError(f"{path} is a folder, and settings are a file. Move it away, or pass -c FILE.")
    if path.exists() and not path.is_file():  # reading it may never end
        raise EdistillError(f"{path} is a pipe or a device, and settings are a file. Pass -c FILE.")
    try:
        return _parsed(read_whole(path, DOCUMENT).decode("utf-8-sig"))
    except OSError as error:
        raise EdistillError(f"{path} cannot be read: {error.strerror}. Make it readable, or pass -c FILE.") from None
    except ValueError as error:  # invalid UTF-8 included
        raise EdistillError(f"{path} is not valid TOML: {error}.") from None


def _parsed(text: str) -> dict[str, Any]:
    """The TOML text as nested tables; raises ValueError if it is invalid, or nested too deeply."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("tables or lists stand in too many others") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`train.epochs=3` as ("train.epochs", 3); values are TOML, a bare word is a string, and an empty value is None:
    unset.

    Raises:
        EdistillError: there is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise EdistillError(f"--set {text}: write KEY=VALUE, for instance --set train.epochs=3.")
    if not value.strip():
        return key.strip(), None
    try:
        parsed = _parsed(f"value = {value}")
        if len(parsed) > 1:
            raise EdistillError(f"--set {text}: one key at a time; pass --set again for the next.")
        return key.strip(), parsed["value"]
    except ValueError:
        return key.strip(), value.strip()
