"""Rows that are a text or a pair of texts each, not a stream: from columns of a table, or from the lines of a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ensemble_distill.data.digests import texts_digest
from ensemble_distill.data.encoding import BETWEEN
from ensemble_distill.data.source import Array, Item, Kind
from ensemble_distill.facts import InputColumns


class Texts:
    """Texts held in memory, in UTF-8, end to end.

    Args:
        texts: the texts in their order; pairs are joined by a byte that no text has.
        y: labels, as for `Arrays`.
        classes: names in the order of the labels, or None.
        columns: the table's columns that hold them; None for the lines of a file.
    """

    kind: Kind = "text"
    scale: Array | None = None
    remarks: tuple[str, ...] = ()
    digest_scope = "all texts whole"

    def __init__(
        self,
        texts: Sequence[str] | Sequence[tuple[str, ...]],
        y: Array | None,
        classes: tuple[str, ...] | None,
        columns: InputColumns | None = None,
    ) -> None:
        self.labels, self.classes, self.columns = y, classes, columns
        each = [text.encode() if isinstance(text, str) else BETWEEN.join(map(str.encode, text)) for text in texts]
        self._ends = np.cumsum([0, *(len(one) for one in each)])
        self._whole = np.frombuffer(b"".join(each), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def item(self, row: int) -> Item:
        x = self._whole[self._ends[row] : self._ends[row + 1]]
        return Item(x, None if self.labels is None else self.labels[row], self.kind)

    def name(self, row: int) -> str:
        return f"row {row}"

    @cached_property
    def digest(self) -> str:
        return texts_digest(self._whole, self._ends, self.labels, self.classes)
