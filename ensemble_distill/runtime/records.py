"""JSON documents as records: their types are what they are held to, so that no damaged file is half read.

What types cannot say of a record, its `__post_init__` raises as a ValueError.
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
    """The record that a JSON value says, nested ones included. Keys that the record does not know are passed over.

    Args:
        kind: a dataclass.
        given: fields marked `GIVEN`, which are not read from the JSON value.

    Raises:
        ValueError: a value is not of its type, is missing, or does not go with the others.
    """
    try:
        if given and isinstance(record, Mapping):
            record = {**record, **dict.fromkeys(given)}
        # as JSON, where a list is a tuple's, and 1 and true differ
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
    """What `parsed` was given for the field."""
    assert info.field_name is not None
    assert info.context is not None
    return info.context[info.field_name]


GIVEN = PlainValidator(_given)


def _told(error: ValidationError) -> str:
    """The first thing that is wrong: where it stands, what stands there, and what should."""
    first = error.errors(include_url=False)[0]
    where = ".".join(part for part in map(str, first["loc"]) if not part.startswith("<"))  # tags of a union
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "value_error":  # of a record's own
        return f"{where}: {first['ctx']['error']}" if where else str(first["ctx"]["error"])
    value = repr(first["input"])
    value = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where or 'it'} is {value}: {message}"
