"""A source that takes its rows from another."""

from __future__ import annotations

from ensemble_distill.data.source import Array, Source
from ensemble_distill.facts import InputColumns


class Wrapping:
    """Rows of an inner source, in part or otherwise. What is said of a table's columns is what that one says."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner

    @property
    def groups(self) -> tuple[int, ...] | None:
        """For each number of a table's rows the place of its column."""
        return getattr(self.inner, "groups", None)

    @property
    def numeric(self) -> Array | None:
        """Which of them vary by amounts, where it is a table."""
        return getattr(self.inner, "numeric", None)

    @property
    def features(self) -> tuple[str, ...] | None:
        """What they are called, where it is a table."""
        return getattr(self.inner, "features", None)

    @property
    def columns(self) -> InputColumns | None:
        """What its rows are made of, where it is a table."""
        return getattr(self.inner, "columns", None)


def innermost(source: Source) -> Source:
    """The one that has rows of its own."""
    while isinstance(source, Wrapping):
        source = source.inner
    return source
