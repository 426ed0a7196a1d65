"""pydantic's findings about a user's value, in the project's words, with remedies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ensemble_distill.errors import meant

TYPES = {
    "dict_type": "it should be a table",
    "model_type": "it should be a table",
    "tuple_type": "it should be a list",
    "string_type": "it should be a string",
}

# a remedy for each type of problem, with the bound from its context
REMEDIES = {
    "greater_than": "Set it above {gt}.",
    "greater_than_equal": "Set it to {ge} or more.",
    "less_than": "Set it below {lt}.",
    "less_than_equal": "Set it to {le} or less.",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "Set it to a whole number."),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "Set it to a number."),
    **dict.fromkeys(("bool_parsing", "bool_type"), "Set it to true or false."),
    "string_type": "Write it in quotes; after --set in two pairs, as '\"7\"', since the shell takes one away.",
}

Problem = Mapping[str, Any]  # one of `ValidationError.errors()`


def said(problem: Problem) -> str:
    """What is wrong, without a final period."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    return TYPES.get(problem["type"], message[:1].lower() + message[1:])


def mended(problem: Problem) -> str:
    """A sentence that says what to do about it; "" if the problem itself says so."""
    of = problem.get("ctx", {})
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", of["expected"])
        otherwise = "Set it to one of these." if len(choices) > 1 else "Set it to this."
        return meant(str(problem["input"]), choices, otherwise)
    return REMEDIES.get(problem["type"], "").format(**of)
