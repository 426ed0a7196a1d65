"""What is left to the user: functions to write, and problems to fix first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ensemble_distill.setup.written import Scene


def raising(code: Mapping[Path, str]) -> list[tuple[str, int, str]]:
    """The lines of the written stubs that raise, each with a description of what belongs there."""
    return [
        (str(module), line, text.split('"')[1])
        for module, content in code.items()
        for line, text in enumerate(content.splitlines(), start=1)
        if "raise NotImplementedError(" in text
    ]


def unwritten(scene: Scene) -> list[tuple[str, int, str]]:
    """Functions of an earlier stub that are still empty."""
    used = [one.factory for one in scene.built if one.factory is not None] + [scene.body_factory]
    return [
        (str(one.file), one.line, f"{one.name} does nothing yet")
        for one in dict.fromkeys(used)
        if one is not None and one.unwritten
    ]


def problems_of(scene: Scene) -> tuple[str, ...]:
    """The problems of the members and the data."""
    members = [one.problem for one in scene.found if one.problem is not None]
    return (*members, *(f"data.{name}: {problem}" for name, problem in scene.splits.problems.items()))
