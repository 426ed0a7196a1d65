"""A view of rows of several arrays: each array's own view of it, drawn together.

A transform acts on the arrays whose kind it knows and leaves the others as they are. What moves pictures moves all of a
row in the same way, since they may show the same; noise is drawn apart for each array; and two rows that are mixed are
mixed by one weight.
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
    """Attributes:
    plans: of each array, by its name.
    """

    plans: Mapping[str, Plan]

    @property
    def rows(self) -> tuple[int, ...]:
        """The row itself, and the one that any of the arrays is mixed with."""
        return max((plan.rows for plan in self.plans.values()), key=len)

    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
        return rendered(self.plans.__getitem__, items, to)

    def y(self, items: Sequence[Item]) -> tuple[Array, Array, float] | None:
        """As of the arrays that are mixed."""
        return max(self.plans.values(), key=lambda plan: len(plan.rows)).y(items)


@dataclass(frozen=True)
class Each:
    """Attributes:
    views: of each array, by its name; where two mix, their partners and weights are drawn by the same keys.
    """

    views: Mapping[str, View]
    kinds: frozenset[Kind] = frozenset({"several"})

    def plan(self, seed: int, view: int, row: int, total: int) -> EachPlan:
        return EachPlan({name: one.plan(seed, view, row, total) for name, one in self.views.items()})


def rendered(plan: Callable[[str], OfOne], items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
    """What a network is given of a row of several arrays: float32 (n,) where it takes them by their names, else the
    only one that it can take, as if rows were of that alone.

    Raises:
        EdistillError: an array that it takes is not there or has another shape, or it could take several.
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
    """The name of the array that a network of one input takes. Raises EdistillError where none could be it, or
    several."""
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
