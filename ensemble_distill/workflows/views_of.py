"""The rows of a split in its views, for members that are run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.several import of_pairs
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import LONGEST, AnyPreprocessing, Several, Tokenization
from ensemble_distill.settings import Settings
from ensemble_distill.teachers.as_held import BYTES, as_held
from ensemble_distill.workspace import Workspace


def views_of(settings: Settings, split: str = "train") -> Iterator[Any]:
    """Each view of a split in turn, (N, …); in ready-made outputs, a member's answer for view v and row i is at [v, i].

    A view is a pure function of `views.seed`, its number and the row's, so it is the same here, in the pass and in
    training. Images are (N, C, H, W) in [0, 1], in the size of the first one or of `teachers.preprocessing`. Texts are
    strings, (N,), or (N, 2) for pairs. Arrays are unchanged. If a row has several arrays, a view is a dict of them, by
    the data's names. A whole view is held in memory at once.

    Args:
        split: train or transfer, whose rows have views; other splits have a single plain one.

    Raises:
        EdistillError: there is no such split, or it cannot have such views.
    """
    plan = Workspace(settings).splits([split])[split]
    asked = settings.teachers.preprocessing
    rows = _Rows(plan, None if asked is None else asked.size)
    for view in range(plan.count):
        each = [rows.seen(row, view) for row in range(len(plan.source))]
        found = {name: np.stack([one[name] for one in each]) for name in each[0]}
        yield found if plan.source.kind == "several" else found[""]


class _Rows:
    """The rows of a split as their views render them, by the names of their arrays; "" if there is only one."""

    def __init__(self, plan: SplitPlan, size: tuple[int, int] | None) -> None:
        self.plan, self.rows, self.size = plan, plan.rows(), size
        self.pairs, self.length = of_pairs(plan.source), BYTES
        self.to = as_held(plan.source, size)

    def seen(self, row: int, view: int) -> Mapping[str, Array]:
        while True:
            (x,) = self.rows.inputs(row, [view], [self.to])
            found = dict(_apart(x, self.to))
            texts = [name for name, (_, to) in found.items() if isinstance(to, Tokenization)]
            if not any(found[name][0][1].all() for name in texts):  # a text that fills its room may have been cut
                return {name: self._text(of) if name in texts else of for name, (of, _) in found.items()}
            if self.length == LONGEST:
                raise EdistillError(
                    f"{self.plan.source.name(row)} has a text of {LONGEST:,} bytes or more, and views are of shorter "
                    "ones. Cut it."
                )
            self.length *= 2
            self.to = as_held(self.plan.source, self.size, self.length)

    def _text(self, fields: Array) -> Array:
        """Bytes (fields, L) as a string, or as two for pairs, (2,)."""
        there = fields[1].astype(bool)
        own = fields[2].astype(int) if self.pairs else np.zeros(fields.shape[1], int)
        each = [fields[0][there & (own == at)].astype(np.uint8).tobytes().decode() for at in range(1 + self.pairs)]
        return np.array(each if self.pairs else each[0])


def _apart(x: Array, to: AnyPreprocessing | None) -> Iterator[tuple[str, tuple[Array, AnyPreprocessing | None]]]:
    """Each array of an input by name, and how it was made."""
    if not isinstance(to, Several):
        yield "", (x, to)
        return
    start = 0
    for part in to.parts:
        size = int(np.prod(part.shape))
        array = x[start : start + size].reshape(part.shape)
        yield part.name, (array.astype(np.int64) if part.kind == "tokens" else array, part.preprocessing)
        start += size
