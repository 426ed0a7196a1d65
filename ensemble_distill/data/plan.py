"""A split as it is asked about: its rows, and the views of each."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_distill.data.rows import Stored, ViewedRows
from ensemble_distill.data.source import Source, View
from ensemble_distill.facts import Split


@dataclass(frozen=True)
class SplitPlan:
    """One split: its rows, and the views to render of each."""

    source: Source
    view: View
    transform: str
    seed: int
    count: int

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
