"""Families of distributions, a family a file; a file's name is its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ensemble_distill.predictive.protocol import Family
from ensemble_distill.runtime.registry import Registry

_FAMILIES = Registry(__name__, "FAMILY")


def family_names() -> tuple[str, ...]:
    """Every family, in alphabetical order."""
    return _FAMILIES.keys


def open_family(name: str, **fields: Any) -> Family:
    """The family of that name, with its fields where they are not the defaults. Raises ValueError for no such name."""
    if name not in _FAMILIES:
        raise ValueError(f"{name!r} is not a family of {', '.join(family_names())}")
    family: Family = _FAMILIES[name].FAMILY(**fields)
    return family


def family_name(family: Family) -> str:
    """The key of a family: the module its class is in."""
    return type(family).__module__.rpartition(".")[2].replace("_", "-")


def family_to_json(family: Family) -> dict[str, Any]:
    """{"name": …} and the family's fields."""
    return {"name": family_name(family), **asdict(family)}  # type: ignore[call-overload]


def family_from_json(record: Mapping[str, Any]) -> Family:
    """Inverse of `family_to_json`. Raises ValueError or TypeError for what it never wrote."""
    return open_family(**record)
