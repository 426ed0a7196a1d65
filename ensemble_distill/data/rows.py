"""The one way to render rows: the inputs that a network gets of each row, in a view or undistorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ensemble_distill.data.push import Push
from ensemble_distill.data.rendering import normalize
from ensemble_distill.data.source import Array, Item, Kind, Plan, Source, View
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import AnyPreprocessing, Preprocessing

PLAIN = open_view("none")
Labels = tuple[Array, Array, float]  # own label, partner's label, weight of the own label


class Stored(Protocol):
    """Stored inputs, for views that cannot be rendered again."""

    def read(self, row: int, view: int) -> Array:
        """The input (C, H, W): pixels in [0, 1] before normalization, or a tensor as networks take it."""
        ...


@dataclass(frozen=True)
class ViewedRows:
    """The rows of a split in the views of a seed.

    Attributes:
        stored: the inputs, if the view alone cannot make them; the view then only says how labels mix.
    """

    source: Source
    view: View
    seed: int
    stored: Stored | None = None

    def inputs(self, row: int, views: Sequence[int], tos: Sequence[AnyPreprocessing | None]) -> list[Array]:
        """A row's inputs, for each view, for each preprocessing. The row is decoded once."""
        if not tos:
            return []
        if self.stored is not None:
            kept = [self.stored.read(row, view) for view in views]
            return [as_taken(x, self.source.kind, to) for x in kept for to in tos]
        own, inputs = self.source.item(row), []
        for view in views:
            plan = self._plan(row, view)
            items = [own, *(self.source.item(other) for other in plan.rows[1:])]
            inputs += [plan.x(items, to) for to in tos]
        return inputs

    def labeled(self, row: int, view: int, to: AnyPreprocessing | None) -> tuple[Array, Labels | None]:
        """A row's input in one view, and its labels; None without labels."""
        plan = self._plan(row, view)
        if self.stored is None:
            items = [self.source.item(other) for other in plan.rows]
            return plan.x(items, to), plan.y(items)
        x, labels, kind = self.stored.read(row, view), self.source.labels, self.source.kind
        items = [Item(x, None if labels is None else labels[other], kind) for other in plan.rows]  # nothing is decoded
        return as_taken(x, kind, to), plan.y(items)

    def push(self, row: int, view: int) -> Push | None:
        """The step along a member's gradient that the view takes after rendering; None for most views."""
        return getattr(self._plan(row, view), "push", None)

    def _plan(self, row: int, view: int) -> Plan:
        return self.view.plan(self.seed, view, row, len(self.source))


def plain_input(item: Item, to: AnyPreprocessing | None) -> Array:
    """The network's input of an undistorted example; see `Rendition.x`."""
    return PLAIN.plan(0, 0, 0, 1).x([item], to)


def plain_inputs(source: Source, rows: Sequence[int], to: AnyPreprocessing | None) -> Array:
    """The network's inputs of undistorted rows, (B, …)."""
    return np.stack([plain_input(source.item(row), to) for row in rows])


def first_input(source: Source, to: AnyPreprocessing | None) -> Array:
    """The network's input of row 0, a batch (1, …)."""
    return plain_inputs(source, [0], to)


def as_taken(x: Array, kind: Kind, to: AnyPreprocessing | None) -> Array:
    """A stored input (C, H, W) as a network takes it: pixels are normalized here, tensors already are."""
    return normalize(x, to) if kind == "pixels" and isinstance(to, Preprocessing) else x
