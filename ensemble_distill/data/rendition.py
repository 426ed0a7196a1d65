"""A view in phases: geometry, then noise, then mixing, then a push, each drawn from its own key.

A transform is a module of `views/`. One that distorts a single example has `draw(key, scale)`, which returns
the change as a plain record; one that mixes two has `draw(key, row, total)`, which returns the partner's row,
the weight of the own one and, where that is none of the inputs, a `Mix`; one that moves what was rendered along
a member's gradient has `draw(key)`, which returns a `Push`. `PHASE` says which it is, `KINDS` what it can act on.
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
    """When a transform acts, whatever the order it is written in."""

    GEOMETRY = 0  # moves the source's own pixels
    NOISE = 1  # changes their values, still at the source's size
    MIX = 2  # mixes two rendered examples
    PUSH = 3  # moves the rendered input along a member's gradient: the caching pass does it


class Change(Protocol):
    """What was drawn for one example; frozen, so that equal draws are equal and hash alike."""

    def apply(self, x: Array, kind: Kind) -> Array:
        """x at the source's size, in the form of its kind; pixels may come or go as floats in [0, 1]."""
        ...


Draw = Callable[[Key, Array | None], Change]


class Mix(Protocol):
    """How two rendered examples become one, where that is not a weighted mean; frozen."""

    def apply(self, own: Array, partner: Array, groups: tuple[int, ...] | None) -> Array:
        """Args:
        groups: for each number of features the place of the column that it comes from; None where each is one.
        """
        ...


DrawMix = Callable[[Key, int, int], tuple[int, float] | tuple[int, float, Mix]]
DrawPush = Callable[[Key], Push]


@dataclass(frozen=True)
class Rendition:
    """A plan: one row, or two that are mixed, and what was drawn for each.

    Attributes:
        rows: the own row first.
        changes: for each of the rows, in the order they apply.
        weight: of the own row, in [0, 1]; of its label alone where there is a mix.
        push: what moves the input afterwards; `x` is the input before.
        mix: how the two become one, where that is no weighted mean.
        groups: a fact of the data, which a mix of columns needs.
        places: another: which of its numbers are places of categories. A weighted mean is none of these.
    """

    rows: tuple[int, ...]
    changes: tuple[tuple[Change, ...], ...]
    weight: float = 1.0
    push: Push | None = None
    mix: Mix | None = None
    groups: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    places: tuple[bool, ...] | None = field(default=None, compare=False, repr=False)

    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
        """The network's input, float32: (C, H, W) for pixels, for all else of x's shape; of texts int64 (fields, L).

        Pixels are mixed in [0, 1] at the network's size, then normalized; `to` concerns only them and texts.

        Raises:
            EdistillError: the items are pixels or texts, and there is no preprocessing of such.
        """
        if items[0].kind == "several":  # as they are: where something is drawn it is a view of each
            return rendered(lambda name: self, items, to)
        each = [self._rendered(item, changes, to) for item, changes in zip(items, self.changes, strict=True)]
        x = each[0]
        if len(each) == 2 and self.mix is not None:
            x = self.mix.apply(each[0], each[1], self.groups)
        elif len(each) == 2:
            x = self.weight * x + (1 - self.weight) * each[1]
            if self.places is not None:  # of the row whose label weighs more
                x = np.where(self.places, each[0] if self.weight >= 0.5 else each[1], x)
        if items[0].kind == "pixels" and isinstance(to, Preprocessing):
            return normalize(x, to)
        return x.copy()  # a source's own array stays out of reach

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
        """(own label, partner's label, weight of the own one); the own one twice where nothing is mixed."""
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
        kinds: what every one of them can act on.
        distortions: name, draw and phase, in the order they apply.
        mix: the one that mixes, if any.
        push: the one that moves along a gradient, if any.
        scale: the source's, for noise on features.
        groups, places: the source's, for mixing columns.
        array: of several a row, the one that it is of; "" where a row is one.
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
        """Whether inputs depend on the members, and so are stored in the cache."""
        return self.push is not None

    def plan(self, seed: int, view: int, row: int, total: int) -> Rendition:
        """Pure in its arguments. Names are part of the keys, so what one transform draws depends on no other;
        a partner's distortions are drawn by the own row's key, apart from the own ones."""
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
        """What of a key is an array's own: noise of two arrays is not the same, and pictures of a row move alike."""
        return (self.array,) if self.array and phase is Phase.NOISE else ()


def pushes(view: View) -> bool:
    """Whether a view moves inputs along the members' gradients; a user's own need not say that it does not."""
    return bool(getattr(view, "pushes", False))
