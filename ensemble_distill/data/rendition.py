"""A view in phases: geometry, then noise, then mixing, then a push, each drawn from its own key.

A transform is a module of `views/`. Its `PHASE` says which of these it is, its `KINDS` what it can act on, and its
`draw` depends on the phase:

- One that distorts a single example has `draw(key, scale)`, which returns a `Change`.
- One that mixes two examples has `draw(key, row, total)`, which returns the partner's row and the own row's weight. If
  inputs are not mixed by that weight, it also returns a `Mix`.
- One that moves the rendered input along a member's gradient has `draw(key)`, which returns a `Push`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np

from ensemble_distill.data.each import rendered
from ensemble_distill.data.encoding import encoded
from ensemble_distill.data.push import Push
from ensemble_distill.data.rendering import normalize, render
from ensemble_distill.data.source import Array, Item, Kind, View
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import AnyPreprocessing, Preprocessing, Tokenization

Key = tuple[int | str, ...]


class Phase(IntEnum):
    """When a transform acts, whatever the order in which a view names its transforms."""

    GEOMETRY = 0  # moves the source's own pixels
    NOISE = 1  # changes their values, still at the source's size
    MIX = 2  # mixes two rendered examples
    PUSH = 3  # moves the rendered input along a member's gradient, in the caching pass


class Change(Protocol):
    """What was drawn for one example; frozen, so that equal draws are equal and hash alike."""

    def apply(self, x: Array, kind: Kind) -> Array:
        """x at the source's size, in the form of its kind; pixels may come or go as floats in [0, 1]."""
        ...


Draw = Callable[[Key, Array | None], Change]


class Mix(Protocol):
    """How two rendered examples become one, other than by a weighted mean; frozen."""

    def apply(self, own: Array, partner: Array, groups: tuple[int, ...] | None) -> Array:
        """The mixed input.

        Args:
            own, partner: the rendered inputs.
            groups: the index of each feature's column; None if each feature is a column.
        """
        ...


DrawMix = Callable[[Key, int, int], tuple[int, float] | tuple[int, float, Mix]]
DrawPush = Callable[[Key], Push]


@dataclass(frozen=True)
class Rendition:
    """A plan: one row, or two that are mixed, and what was drawn for each.

    Attributes:
        rows: the own row first.
        changes: each row's changes, in the order they apply.
        weight: of the own row, in [0, 1]; with a `mix`, of its label alone.
        push: what moves the input afterwards; `x` is the input before that.
        mix: how the two rows become one, if not by a weighted mean.
        groups: a fact of the data that a mix of columns needs: the index of each number's column.
        places: another: which numbers are indices of categories, which have no weighted mean.
    """

    rows: tuple[int, ...]
    changes: tuple[tuple[Change, ...], ...]
    weight: float = 1.0
    push: Push | None = None
    mix: Mix | None = None
    groups: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    places: tuple[bool, ...] | None = field(default=None, compare=False, repr=False)

    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
        """The network's input; see `Plan.x`.

        Pixels are mixed in [0, 1] at the network's size, then normalized. `to` concerns only pixels, texts and rows of
        several arrays.

        Raises:
            EdistillError: the items are pixels or texts, and `to` is no preprocessing for them.
        """
        if items[0].kind == "several":  # undistorted: `Each` makes the distorted views of several arrays
            return rendered(lambda name: self, items, to)
        each = [self._rendered(item, changes, to) for item, changes in zip(items, self.changes, strict=True)]
        x = each[0]
        if len(each) == 2 and self.mix is not None:
            x = self.mix.apply(each[0], each[1], self.groups)
        elif len(each) == 2:
            x = self.weight * x + (1 - self.weight) * each[1]
            if self.places is not None:  # from the row whose label weighs more
                x = np.where(self.places, each[0] if self.weight >= 0.5 else each[1], x)
        if items[0].kind == "pixels" and isinstance(to, Preprocessing):
            return normalize(x, to)
        return x.copy()  # the caller must not get the source's own array

    def _rendered(self, item: Item, changes: Sequence[Change], to: AnyPreprocessing | None) -> Array:
        x = item.x
        for change in changes:
            x = change.apply(x, item.kind)
        if item.kind == "text":
            return _encoded(x, to)
        if item.kind != "pixels":
            return x
        if not isinstance(to, Preprocessing):
            raise EdistillError(
                "The data holds pixels, but the network states no preprocessing. Give size, mean and std: "
                "teachers.preprocessing = { size = [32, 32], mean = [0.5], std = [0.5] }."
            )
        return render(x, to)

    def y(self, items: Sequence[Item]) -> tuple[Array, Array, float] | None:
        """(own label, partner's label, weight of the own label); the own label twice if nothing is mixed."""
        own, partner = items[0].y, items[-1].y
        return None if own is None or partner is None else (own, partner, self.weight)


def _encoded(text: Array, to: AnyPreprocessing | None) -> Array:
    if not isinstance(to, Tokenization):
        raise EdistillError(
            "The data holds texts, but the network states no tokenizer. Give the tokenizer.json that it was trained "
            'with, and how many tokens a text is cut to: teachers.preprocessing = { tokenizer = "tokenizer.json", '
            "length = 128 }."
        )
    return encoded(text, to)


@dataclass(frozen=True)
class Composition:
    """A view made of named transforms.

    Attributes:
        kinds: the kinds that all of them can act on.
        distortions: name, draw and phase of those that distort, in the order they apply.
        mix: name and draw of the one that mixes, if any.
        scale: the source's, as the unit of noise.
        push: name and draw of the one that moves along a gradient, if any.
        groups, places: the source's, for mixing columns.
        array: which of a row's several arrays the view is of; "" if a row is one array.
    """

    kinds: frozenset[Kind]
    distortions: tuple[tuple[str, Draw, Phase], ...] = ()
    mix: tuple[str, DrawMix] | None = None
    scale: Array | None = field(default=None, compare=False, repr=False)
    push: tuple[str, DrawPush] | None = None
    groups: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    array: str = ""
    places: tuple[bool, ...] | None = field(default=None, compare=False, repr=False)

    @property
    def pushes(self) -> bool:
        """Whether inputs depend on the members, so that the cache must store them."""
        return self.push is not None

    def plan(self, seed: int, view: int, row: int, total: int) -> Rendition:
        """The rendition of a row, a pure function of the arguments.

        Names are part of the keys, so that what one transform draws depends on no other. A partner's distortions are
        drawn from the own row's key with "partner" added, so they differ from the own ones.
        """
        rows: tuple[int, ...] = (row,)
        weight, mix = 1.0, None
        if self.mix is not None:
            name, draw_mix = self.mix
            partner, weight, *how = draw_mix((name, seed, view, row), row, total)
            mix = how[0] if how else None
            rows = (row, partner)
        changes = tuple(
            tuple(
                draw((name, seed, view, row, *role, *self._own(phase)), self.scale)
                for name, draw, phase in self.distortions
            )
            for role in ((), ("partner",))[: len(rows)]
        )
        push = None if self.push is None else self.push[1]((self.push[0], seed, view, row))
        return Rendition(rows, changes, weight, push, mix, self.groups, self.places)

    def _own(self, phase: Phase) -> tuple[str, ...]:
        """The part of a key that is an array's own: arrays differ in their noise, but pictures of a row move alike."""
        return (self.array,) if self.array and phase is Phase.NOISE else ()


def pushes(view: View) -> bool:
    """Whether a view moves inputs along the members' gradients; False for a user's view that does not say."""
    return bool(getattr(view, "pushes", False))
