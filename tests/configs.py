"""Configurations of students, by the fields of both their records."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ensemble_distill.facts import Member
from ensemble_distill.predictive.categorical import CategoricalFamily
from ensemble_distill.runs.config import Provenance, StudentConfig
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.tasks.classification import Classification

ORIGIN = {field.name for field in fields(Provenance)}


def members(count: int) -> tuple[Member, ...]:
    return tuple(Member(f"member-{m}", f"{m:064x}") for m in range(count))


def student_config(**given: Any) -> StudentConfig:
    """Of all fields of both records."""
    origin = {name: value for name, value in given.items() if name in ORIGIN}
    what = {name: value for name, value in given.items() if name not in ORIGIN}
    return StudentConfig(Architecture(**what), Provenance(**origin))


def configured(**changes: Any) -> StudentConfig:
    """Four heads of four members on six features, with changes."""
    config: dict[str, Any] = {
        "task": Classification(("cat", "dog", "Übel")),
        "method": "hydra",
        "options": {"temperature": 2.0},
        "model": "../../model.py:make_body",
        "kwargs": {"width": 5},
        "hidden": (3,),
        "heads": 4,
        "form": "heads",
        "family": CategoricalFamily(),
        "kind": "features",
        "shape": (6,),
        "preprocessing": None,
        "members": members(4),
    }
    return student_config(**{**config, **changes})


def changed(config: StudentConfig, **changes: Any) -> StudentConfig:
    """With other fields of its architecture."""
    return replace(config, architecture=replace(config.architecture, **changes))
