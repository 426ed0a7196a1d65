"""Splits that lack some of the ensemble's classes or list them in another order: labels are matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ensemble_distill.data.source import Array, Item, Scale, Source
from ensemble_distill.data.wrapping import Wrapping
from ensemble_distill.errors import EdistillError


class Renamed(Wrapping):
    """The same rows, with labels that index `classes`.

    The digest is the source's own, since that covers the names, which determine the rest.

    Args:
        source: a source with named classes, all of them among `classes`.
        classes: the ensemble's.
    """

    def __init__(self, source: Source, classes: tuple[str, ...]) -> None:
        assert source.classes is not None
        super().__init__(source)
        self.classes: tuple[str, ...] | None = classes
        self.kind, self.remarks = source.kind, source.remarks
        at = {name: label for label, name in enumerate(classes)}
        self._labels = np.array([at[name] for name in source.classes], np.int64)

    def __len__(self) -> int:
        return len(self.inner)

    def item(self, row: int) -> Item:
        item = self.inner.item(row)
        return item if item.y is None else replace(item, y=self._labels[item.y])

    def name(self, row: int) -> str:
        return self.inner.name(row)

    @property
    def scale(self) -> Scale | None:
        return self.inner.scale

    @property
    def labels(self) -> Array | None:
        labels = self.inner.labels
        return None if labels is None else self._labels[labels]

    @property
    def digest(self) -> str:
        return self.inner.digest

    @property
    def digest_scope(self) -> str:
        return self.inner.digest_scope


def by_name(source: Source, classes: Sequence[str] | None, named: str) -> Source:
    """The source with labels that index `classes`; the source itself if they already do, or if either has no names.

    Args:
        named: what the source is, for messages.

    Raises:
        EdistillError: it has a class that is not among `classes`, or it holds tokens of another vocabulary.
    """
    if source.classes is None or classes is None or source.classes == tuple(classes):
        return source
    if source.kind == "tokens":  # inputs are ids of the same vocabulary, and would have to change too
        raise _other_vocabulary(source.classes, classes, named)
    known = set(classes)
    unknown = [name for name in source.classes if name not in known]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise EdistillError(
            f"{named} has the class {unknown[0]!r}{more}, which is not among the {len(classes)} of the ensemble "
            f"({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''}). Rename it as it is called there, or take "
            "its rows out; rows of other classes belong in data.ood."
        )
    return Renamed(source, tuple(classes))


def _other_vocabulary(there: Sequence[str], classes: Sequence[str], named: str) -> EdistillError:
    pairs = enumerate(zip(there, classes, strict=False))
    differ = next((at for at, (one, other) in pairs if one != other), min(len(there), len(classes)))
    return EdistillError(
        f"{named} has {len(there)} tokens or labels, and the ensemble {len(classes)}; the first that differs is number "
        f"{differ}. Give the vocabulary of the ensemble: tokens.vocabulary, or the data.train that it was built from."
    )
