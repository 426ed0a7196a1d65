"""Problems with a settings file, in words a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ensemble_distill.errors import nearest
from ensemble_distill.runtime.problems import mended, said
from ensemble_distill.settings.schema import fields_in, is_named, kebab, tables_in

DEEPEST = 32  # levels of nested tables or lists
MOST_SHOWN = 200  # characters of a value in a message


def unusable(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key and the problem of the first nan or inf, or of the first value nested too deeply to be written; None if
    all is well. Free tables such as model-kwargs have no types that would refuse them."""
    waiting: list[tuple[str, Any, int]] = [("", values, 0)]
    while waiting:
        key, value, depth = waiting.pop(0)
        if isinstance(value, float) and not isfinite(value):
            return key, f"{key} is {value!r}: input should be a finite number. Set it to a number."
        if isinstance(value, Mapping | list | tuple) and depth == DEEPEST:
            return key, f"{shown(key)} holds tables or lists in {DEEPEST} others. Give it fewer levels."
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{name}".lstrip("."), item, depth + 1) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(key, item, depth + 1) for item in value]
    return None


def shown(value: Any) -> str:
    """A value as it is written; the middle of a long one is elided."""
    try:
        text = value if isinstance(value, str) and "\n" not in value else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deeply nested tables
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]} … {text[-MOST_SHOWN // 4 :]}"


def wrong_kind(value: Any, annotation: Any) -> str | None:
    """The problem with a bool in place of a number, or the reverse, which pydantic would convert; None if there is
    none."""
    kinds = {kind if isinstance(kind, type) else type(kind) for kind in _kinds(annotation)}
    numbers = bool not in kinds and bool(kinds & {int, float})
    if numbers and isinstance(value, bool):
        return "it should be a number"
    if numbers and isinstance(value, list | tuple) and any(isinstance(item, bool) for item in value):
        return "its entries should be numbers"
    if isinstance(value, int | float) and not isinstance(value, bool) and bool in kinds and not kinds & {int, float}:
        return "it should be true or false"
    return None


def _kinds(annotation: Any) -> Iterator[Any]:
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for part in inner:
        yield from _kinds(part)


def explain(error: ValidationError, settings: type[BaseModel]) -> tuple[str, str]:
    """The dotted key of the first problem, and a sentence about it; unknown keys come first."""
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    parts = [part for part in map(str, problem["loc"]) if not part.startswith("<")]
    key = ".".join(map(quoted, parts))
    given = problem.get("input")
    written = shown(given if not isinstance(given, str) else repr(given))
    if problem["type"] == "extra_forbidden":
        return key, f"unknown key {key}. {_nearest(parts, settings)}"
    if problem["type"] == "missing":
        return key, f"{key} is missing from {written}."
    return key, f"{key} is {written}: {said(problem)}. {mended(problem)}".rstrip()


def unknown(key: str, settings: type[BaseModel]) -> str | None:
    """The problem with an unknown dotted key; None if the key is known or belongs to a free table."""
    parts = parts_of(key)
    found = _field(parts, settings)
    return f"unknown key {key}. {_nearest(parts, settings)}" if found is None else None


def parts_of(key: str) -> list[str]:
    """The parts of a dotted key; a part that contains a dot is quoted, as in TOML."""
    parts = re.split(r"""\.(?=(?:[^"']|"[^"]*"|'[^']*')*$)""", key)
    return [part[1:-1] if re.fullmatch(r"""".+"|'.+'""", part) else part for part in parts]


def quoted(part: str) -> str:
    """A part of a dotted key as TOML spells it."""
    return part if re.fullmatch(r"[\w-]+", part) else f'"{part}"'


def _field(parts: Sequence[str], settings: type[BaseModel]) -> tuple[str, ...] | None:
    """The key's parts, with NAME for a part that the file may choose; None for an unknown key."""
    section: type[BaseModel] | None = settings
    named: list[str] = []
    waiting = list(parts)
    while waiting:
        if section is None:
            return (*named, *waiting)
        part = waiting.pop(0)
        field = next((f for name, f in section.model_fields.items() if kebab(name) == kebab(part)), None)
        if field is None:
            return None
        named.append(part)
        section = next(iter(tables_in(field.annotation)), None)
        if is_named(field.annotation) and waiting:
            waiting.pop(0)
            named.append("NAME")
    return tuple(named)


def _nearest(parts: Sequence[str], settings: type[BaseModel]) -> str:
    """A suggestion for an unknown key: the nearest key of its own table, or else a key of that name elsewhere."""
    *tables, last = parts
    table = ".".join(map(quoted, tables))
    named = ".".join(_field(tables, settings) or ())
    keys = [key for key, _ in fields_in(settings)]
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == named]
    if close := nearest(last, siblings):
        return f"Did you mean {table and table + '.'}{close[0]}?"
    if close := nearest(last, [k.rpartition(".")[2] for k in keys]):
        return f"Did you mean {next(k for k in keys if k.rpartition('.')[2] == close[0])}?"
    return f"Valid keys {f'of {table} ' if table else ''}are {', '.join(siblings)}."
