"""A stream of tokens as rows: consecutive windows, each with the tokens before it as its context.

A network with a state would carry it from one window to the next. Its answer to a window would then depend on all that
came before, and a row alone would have no answer: not in a cache that is read in any order, not in a pass that resumes
after a crash, not in batches of another size. Instead, each row brings its own context: the `context` tokens before its
window. A network starts without a state at the beginning of the context, and answers the window. So members and
student see the same tokens before every position, and the answer to a row depends on the row alone.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ensemble_distill.data.digests import tokens_digest
from ensemble_distill.data.source import Array, Item, Kind
from ensemble_distill.tasks.checks.positions import IGNORED


class TokenStream:
    """Windows of a stream in its order. Row r predicts tokens r·L to r·L + L − 1, each from those before it.

    Positions beyond the stream's end are ignored. The context before the first token is made of `filler`.

    Args:
        ids: (T,) int64, T ≥ 1.
        window, context: L and C.
        classes: the vocabulary.
        unit: what a token is; None if ids were given.
        filler: the id that stands before the beginning and beyond the end.
        remarks: see `Source`.
    """

    kind: Kind = "tokens"
    scale: Array | None = None
    digest_scope = "all tokens, the vocabulary, and how rows are cut"

    def __init__(
        self,
        ids: Array,
        window: int,
        context: int,
        classes: tuple[str, ...],
        unit: str | None,
        filler: int = 0,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.window, self.context, self.token_unit, self.remarks = window, context, unit, remarks
        self.classes: tuple[str, ...] | None = classes
        self._count, rows = len(ids), -(-len(ids) // window)
        beyond = rows * window - len(ids)
        self._stream = np.concatenate([np.full(context + 1, filler), ids, np.full(beyond, filler)]).astype(np.int64)
        self.labels: Array | None = np.pad(ids.astype(np.int64), (0, beyond), constant_values=IGNORED).reshape(
            rows, window
        )

    def __len__(self) -> int:
        return -(-self._count // self.window)

    def item(self, row: int) -> Item:
        """x is (C + L,): the token at C + i is the one before token i of the window."""
        assert self.labels is not None
        start = row * self.window
        return Item(self._stream[start : start + self.context + self.window], self.labels[row], self.kind)

    def name(self, row: int) -> str:
        last = min((row + 1) * self.window, self._count) - 1
        return f"tokens {row * self.window} to {last}"

    @cached_property
    def digest(self) -> str:
        assert self.classes is not None
        return tokens_digest(self._stream, self._count, self.window, self.context, self.classes)
