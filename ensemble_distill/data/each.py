"""A view of rows of several arrays: a view of each array, drawn together.

A transform acts on the arrays whose kind it knows and leaves the others as they are. Geometry moves all pictures of a
row in the same way, since they may show the same thing. Noise is drawn separately for each array. Two rows are mixed by
one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ensemble_distill.data.several import apart
from ensemble_distill.data.source import Array, Item, Kind, Plan, View
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import AnyPreprocessing, Part, Preprocessing, Several, Tokenization


class OfOne(Protocol):
    """The plan of one array."""

    @property
    def rows(self) -> tuple[int, ...]: ...
    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array: ...


@dataclass(frozen=True)
class EachPlan:
    """The plan of a row of several arrays.

    Attributes:
        plans: the plan of each array, by name.
    """

    plans: Mapping[str, Plan]

    @property
    def rows(self) -> tuple[int, ...]:
        """The row itself, and the row that any of its arrays is mixed with."""
        return max((plan.rows for plan in self.plans.values()), key=len)

    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
        return rendered(self.plans.__getitem__, items, to)

    def y(self, items: Sequence[Item]) -> tuple[Array, Array, float] | None:
        """The labels of a plan that mixes; if none does, of any plan."""
        return max(self.plans.values(), key=lambda plan: len(plan.rows)).y(items)


@dataclass(frozen=True)
class Each:
    """A view of rows of several arrays.

    Attributes:
        views: the view of each array, by name. If several mix, the same keys give them one partner and one weight.
    """

    views: Mapping[str, View]
    kinds: frozenset[Kind] = frozenset({"several"})

    def plan(self, seed: int, view: int, row: int, total: int) -> EachPlan:
        return EachPlan({name: one.plan(seed, view, row, total) for name, one in self.views.items()})


def rendered(plan: Callable[[str], OfOne], items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
    """The network's input of a row of several arrays.

    A network that takes arrays by name gets float32 (n,); see `Several`. Any other gets the only array that it can
    take, as if that were the whole row.

    Raises:
        EdistillError: an array that the network takes is missing or has another kind or shape; or no array, or more
            than one, could be its only input.
    """
    arrays = [apart(item) for item in items]

    def one(name: str, to: AnyPreprocessing | None) -> Array:
        own = plan(name)
        return own.x([found[name] for found in arrays[: len(own.rows)]], to)

    if not isinstance(to, Several):
        return one(only_array({name: item.kind for name, item in arrays[0].items()}, to), to)
    x, start = np.empty(to.shape, np.float32), 0
    for part in to.parts:
        _refuse_other(arrays[0], part)
        array = one(part.name, part.preprocessing)
        _refuse_other_shape(part, array)
        x[start : start + array.size] = array.reshape(-1)
        start += array.size
    return x


def _refuse_other(arrays: Mapping[str, Item], part: Part) -> None:
    if part.name not in arrays or arrays[part.name].kind != part.kind:
        there = "which they lack" if part.name not in arrays else f"and that holds {arrays[part.name].kind}"
        raise EdistillError(
            f"The network takes {part.name} ({part.kind}) of each row, {there}: rows hold "
            f"{first_few(list(arrays), 8)}. Give rows like those it was trained on."
        )


def _refuse_other_shape(part: Part, array: Array) -> None:
    if array.shape != part.shape:
        raise EdistillError(
            f"The network takes {part.name} of shape {part.shape}, and a row has {array.shape}. Give rows like those "
            "it was trained on."
        )


def only_array(arrays: Mapping[str, Kind], to: AnyPreprocessing | None) -> str:
    """The name of the array that a network of one input takes. Raises EdistillError unless exactly one could be it."""
    wanted = {Preprocessing: {"pixels"}, Tokenization: {"text"}}.get(type(to))
    names = [
        name
        for name, kind in arrays.items()
        if (kind in wanted if wanted else kind not in ("pixels", "text", "tokens"))
    ]
    if len(names) != 1:
        what = "pictures" if isinstance(to, Preprocessing) else "texts" if isinstance(to, Tokenization) else "numbers"
        found = first_few([f"{name} ({kind})" for name, kind in arrays.items()], 8)
        raise EdistillError(
            f"A member takes {what} alone, and of such a row has {len(names)} arrays: {found}. Say which it takes, and "
            'what it calls it: teachers.inputs = { NAME = "argument" }.'
        )
    return names[0]
