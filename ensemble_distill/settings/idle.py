"""Settings that apply to nothing: what is said where a key does nothing. The rules stand where keys act."""

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
    """Why a setting does nothing.

    Attributes:
        why: a clause.
        remedy: what to do, a sentence.
        refused: whether results differ from those of a setting that acts; else it is warned of.
        quiet: whether it is only noted, since nobody asked for anything.
    """

    why: str
    remedy: str = "Leave it out."
    refused: bool = False
    quiet: bool = False


def no_pixels(kinds: Iterable[str]) -> Idle | None:
    """For keys that act on pixels and on texts, where the splits hold rows of these kinds."""
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
    """Warn of each given key that does nothing.

    Args:
        given: whether a dotted key was given; see `is_given`.
        found: keys that may do nothing, and why they do.

    Raises:
        EdistillError: one would change results if it did what it says.
    """
    for key, idle in found.items():
        if idle is None or not given(key):
            continue
        told = f"{key} is set and does nothing: {idle.why}. {idle.remedy}"
        if idle.refused:
            raise EdistillError(told)
        (progress.note if idle.quiet else progress.warn)(told)


def is_given(settings: Settings, key: str) -> bool:
    """Whether a dotted key has another value than its default, which is also what a run's own file says of keys that
    nobody set."""
    here: Any = settings
    *tables, last = key.replace("-", "_").split(".")
    for table in tables:
        here = here[table] if isinstance(here, Mapping) else getattr(here, table)
    if isinstance(here, Mapping):
        return any(name.replace("-", "_") == last for name in here)
    assert isinstance(here, Section)
    name = last if last in type(here).model_fields else f"{last}_"
    return bool(getattr(here, name) != type(here).model_fields[name].get_default(call_default_factory=True))
