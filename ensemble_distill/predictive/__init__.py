"""Families of distributions, one per file; the file's name is the family's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ensemble_distill.predictive.protocol import Family
from ensemble_distill.runtime.registry import Registry

_FAMILIES = Registry(__name__, "FAMILY")


def family_names() -> tuple[str, ...]:
    """The keys of all families, in alphabetical order."""
    return _FAMILIES.keys


def open_family(name: str, **fields: Any) -> Family:
    """The family with key `name`; fields not given keep their defaults. Raises ValueError for an unknown key."""
    if name not in _FAMILIES:
        raise ValueError(f"{name!r} is not a family of {', '.join(family_names())}")
    family: Family = _FAMILIES[name].FAMILY(**fields)
    return family


def family_name(family: Family) -> str:
    """The key of a family: the name of the module that defines its class."""
    return type(family).__module__.rpartition(".")[2].replace("_", "-")


def family_to_json(family: Family) -> dict[str, Any]:
    """A JSON record of a family: its key as "name", and its fields."""
    return {"name": family_name(family), **asdict(family)}  # type: ignore[call-overload]


def family_from_json(record: Mapping[str, Any]) -> Family:
    """Inverse of `family_to_json`. Raises ValueError or TypeError for a record that it did not write."""
    return open_family(**record)
