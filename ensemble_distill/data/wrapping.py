"""Sources that take their rows from another source."""

from __future__ import annotations

from ensemble_distill.data.source import Array, Source
from ensemble_distill.facts import InputColumns


class Wrapping:
    """Rows taken from an inner source, all or some of them. Column facts of a table come from that source."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner

    @property
    def groups(self) -> tuple[int, ...] | None:
        """(F,) the index of each number's column; None if the source is not a table."""
        return getattr(self.inner, "groups", None)

    @property
    def numeric(self) -> Array | None:
        """(F,) whether each number is a quantity; None if the source is not a table."""
        return getattr(self.inner, "numeric", None)

    @property
    def features(self) -> tuple[str, ...] | None:
        """(F,) the numbers' names; None if the source is not a table."""
        return getattr(self.inner, "features", None)

    @property
    def columns(self) -> InputColumns | None:
        """The columns that rows are made of; None if the source is not a table."""
        return getattr(self.inner, "columns", None)


def innermost(source: Source) -> Source:
    """The source inside all wrappings, which has rows of its own."""
    while isinstance(source, Wrapping):
        source = source.inner
    return source
