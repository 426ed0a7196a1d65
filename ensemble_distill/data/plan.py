"""What a pass or a training run reads of a split: its rows, and the views of each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.data.rows import PLAIN, Stored, ViewedRows
from ensemble_distill.data.source import Source, View
from ensemble_distill.facts import Split


@dataclass(frozen=True)
class SplitPlan:
    """The rows of one split, and the views to render of each.

    Attributes:
        source: the rows.
        view: the transform.
        transform: the transform's name.
        seed: the seed of the views.
        count: views of each row.
        folds: (N,) the fold of each row, or None. With folds, only the member trained without a row's fold answers it.
        all_folds: the folds of all rows before a limit took some of them.
    """

    source: Source
    view: View
    transform: str
    seed: int
    count: int
    folds: NDArray[np.int64] | None = field(default=None, compare=False)
    all_folds: NDArray[np.int64] | None = field(default=None, compare=False)

    @classmethod
    def plain(
        cls, source: Source, folds: NDArray[np.int64] | None = None, all_folds: NDArray[np.int64] | None = None
    ) -> SplitPlan:
        """One plain view of each row."""
        return cls(source, PLAIN, "none", 0, 1, folds, all_folds)

    def rows(self, stored: Stored | None = None) -> ViewedRows:
        """The rows to render; `stored` holds their inputs if those are kept."""
        return ViewedRows(self.source, self.view, self.seed, stored)

    def facts(self) -> Split:
        return Split(
            rows=len(self.source),
            digest=self.source.digest,
            digest_scope=self.source.digest_scope,
            kind=self.source.kind,
            transform=self.transform,
            seed=self.seed,
            labels=self.source.labels is not None,
        )
