"""Reporting settings that have no effect; the rules are defined where the keys are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings.section import Section
from ensemble_distill.settings.sections import Settings


@dataclass(frozen=True)
class Idle:
    """Why a setting has no effect.

    Attributes:
        why: a clause.
        remedy: a sentence that says what to do.
        refused: raise an error, since results would differ if the setting had its effect; otherwise it is a warning.
        quiet: only a note instead of a warning, since nobody asked for anything.
    """

    why: str
    remedy: str = "Leave it out."
    refused: bool = False
    quiet: bool = False


def no_pixels(kinds: Iterable[str]) -> Idle | None:
    """Why a key for pixels and texts has no effect on splits with rows of these kinds; None if it has one."""
    found = sorted(set(kinds))
    if {"pixels", "text", "several"} & set(found) or not found:
        return None
    return Idle(
        f"it is for uint8 pixels and texts, and the data holds {' and '.join(found)}, which networks are given as they "
        "are",
        "Leave it out; where rows are not normalized yet, normalize the arrays, or store uint8 pixels.",
        refused=True,
    )


def tell(given: Callable[[str], bool], found: Mapping[str, Idle | None], progress: Progress) -> None:
    """Report each given key that has no effect.

    Args:
        given: whether a dotted key was given; see `is_given`.
        found: keys that may have no effect, and the reason or None.

    Raises:
        EdistillError: the reason of one of them is `refused`.
    """
    for key, idle in found.items():
        if idle is None or not given(key):
            continue
        told = f"{key} is set and does nothing: {idle.why}. {idle.remedy}"
        if idle.refused:
            raise EdistillError(told)
        (progress.note if idle.quiet else progress.warn)(told)


def is_given(settings: Settings, key: str) -> bool:
    """Whether a dotted key differs from its default; a run's own file states the defaults too."""
    here: Any = settings
    *tables, last = key.replace("-", "_").split(".")
    for table in tables:
        here = here[table] if isinstance(here, Mapping) else getattr(here, table)
    if isinstance(here, Mapping):
        return any(name.replace("-", "_") == last for name in here)
    assert isinstance(here, Section)
    name = last if last in type(here).model_fields else f"{last}_"
    return bool(getattr(here, name) != type(here).model_fields[name].get_default(call_default_factory=True))
