"""JSON documents as typed records: every value is checked against its type, so that no damaged file is half read.

What types cannot express, a record checks in `__post_init__`, which raises ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import PlainValidator, TypeAdapter, ValidationError, ValidationInfo

from ensemble_distill.errors import EdistillError

SHOWN = 60  # characters of a value in a message

T = TypeVar("T")


def parsed(kind: Callable[..., T], record: object, **given: object) -> T:
    """The record in a JSON value, nested records included; unknown keys are ignored.

    Args:
        kind: a dataclass.
        given: values of the fields marked `GIVEN`, which are not read from the JSON value.

    Raises:
        ValueError: a value is missing, has the wrong type, or contradicts the others.
    """
    try:
        if given and isinstance(record, Mapping):
            record = {**record, **dict.fromkeys(given)}
        # validated as JSON, where a list can become a tuple, and 1 and true differ
        found: T = _adapter(kind).validate_json(json.dumps(record), strict=True, context=given)
        return found
    except ValidationError as error:
        raise ValueError(_told(error)) from None
    except EdistillError as error:
        raise ValueError(str(error).rstrip(".")) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _given(value: Any, info: ValidationInfo) -> Any:
    """The value that `parsed` received for the field."""
    assert info.field_name is not None
    assert info.context is not None
    return info.context[info.field_name]


GIVEN = PlainValidator(_given)


def _told(error: ValidationError) -> str:
    """The first problem: its place, the value found there, and what is expected."""
    first = error.errors(include_url=False)[0]
    where = ".".join(part for part in map(str, first["loc"]) if not part.startswith("<"))  # without the tags of a union
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "value_error":  # raised by the record itself
        return f"{where}: {first['ctx']['error']}" if where else str(first["ctx"]["error"])
    value = repr(first["input"])
    value = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where or 'it'} is {value}: {message}"
