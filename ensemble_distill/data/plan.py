"""A split as it is asked about: its rows, and the views of each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.data.rows import PLAIN, Stored, ViewedRows
from ensemble_distill.data.source import Source, View
from ensemble_distill.facts import Split


@dataclass(frozen=True)
class SplitPlan:
    """One split: its rows, and the views to render of each.

    Attributes:
        folds: (N,) the fold that each row was held out of, where only the member answers it that was trained without.
        all_folds: the same of all rows, of which a limit takes some.
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
        """The rows as they are, once."""
        return cls(source, PLAIN, "none", 0, 1, folds, all_folds)

    def rows(self, stored: Stored | None = None) -> ViewedRows:
        """Its rows to render; `stored` are the inputs, where those are kept."""
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
