"""Views: a transform a file, whose name is its key (`crop_flip.py` is "crop-flip").

See `data/rendition.py` for what such a module holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import cast

import numpy as np

from ensemble_distill.data.each import Each
from ensemble_distill.data.rendition import Composition, Phase, pushes
from ensemble_distill.data.several import NUMBERS, arrays_told
from ensemble_distill.data.source import Array, Item, Kind, Plan, Scale, View
from ensemble_distill.errors import EdistillError, nearest
from ensemble_distill.facts import AnyPreprocessing, RowArray
from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.runtime.own import told_as_own
from ensemble_distill.runtime.registry import Registry

SHARED = "Fix it; its items are read-only, since others are given the same: x = item.x.copy() is one to write into."


_VIEWS = Registry(__name__, "PHASE")


def view_names() -> list[str]:
    """Names of the transforms, sorted."""
    return list(_VIEWS.keys)


def kinds_of(name: str) -> frozenset[Kind]:
    """The kinds that a transform can act on."""
    kinds: frozenset[Kind] = _module(name).KINDS
    return kinds


def open_view(
    spec: str,
    scale: Scale | None = None,
    groups: tuple[int, ...] | None = None,
    arrays: Sequence[RowArray] | None = None,
    places: tuple[bool, ...] | None = None,
) -> View:
    """The view that `views.transform` names.

    Args:
        spec: a transform, several joined by "+" in any order, or `file.py:factory`, which returns a View.
        scale: the source's `scale`, the unit of noise.
        groups: the index of each feature's column; None if each feature is a column.
        arrays: the arrays of a row; None if a row is one array. A transform acts on those whose kind it knows.
        places: which of a table's numbers are indices of categories; see `InputColumns`.

    Raises:
        EdistillError: an unknown name, a repeated one, two transforms that mix or two that push, one that acts on none
            of the arrays, or a factory that fails.
    """
    if ":" in spec:
        return _users_view(spec)
    names = [name.strip() for name in spec.split("+")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EdistillError(f"views.transform is {spec!r}, which names {twice} twice. Name it once.")
    _refuse_unknown(names, spec)
    transforms = sorted(((name, _module(name)) for name in names), key=lambda t: (t[1].PHASE, t[0]))
    for phase, what in ((Phase.MIX, "mix two rows"), (Phase.PUSH, "move the input along a gradient")):
        alike = [name for name, module in transforms if module.PHASE is phase]
        if len(alike) > 1:
            raise EdistillError(f"views.transform is {spec!r}, but {alike[0]} and {alike[1]} both {what}. Keep one.")
    if arrays is None:
        assert scale is None or isinstance(scale, np.ndarray)
        return _composed(transforms, scale, groups, places)
    _refuse_idle(transforms, spec, arrays)
    units: Mapping[str, Array] = scale if isinstance(scale, Mapping) else {}
    return Each(
        {
            one.name: _composed(
                [(name, module) for name, module in transforms if one.kind in module.KINDS],
                units.get(one.name),
                *((groups, places) if one.name == NUMBERS else (None, None)),
                one.name,
            )
            for one in arrays
        }
    )


def _composed(
    transforms: Sequence[tuple[str, ModuleType]],
    scale: Array | None,
    groups: tuple[int, ...] | None,
    places: tuple[bool, ...] | None,
    array: str = "",
) -> Composition:
    mixes = [(name, module.draw) for name, module in transforms if module.PHASE is Phase.MIX]
    moves = [(name, module.draw) for name, module in transforms if module.PHASE is Phase.PUSH]
    kinds: list[frozenset[Kind]] = [module.KINDS for _, module in transforms]
    return Composition(
        kinds=frozenset.intersection(*kinds) if kinds else frozenset(),
        distortions=tuple((name, module.draw, module.PHASE) for name, module in transforms if module.PHASE < Phase.MIX),
        mix=mixes[0] if mixes else None,
        scale=scale,
        push=moves[0] if moves else None,
        groups=groups,
        array=array,
        places=places,
    )


def _refuse_idle(transforms: Sequence[tuple[str, ModuleType]], spec: str, arrays: Sequence[RowArray]) -> None:
    """Raise EdistillError for a transform that acts on none of the arrays, or moves inputs along a gradient."""
    for name, module in transforms:
        if module.PHASE is Phase.PUSH or not any(one.kind in module.KINDS for one in arrays):
            why = "moves a row that is one array" if module.PHASE is Phase.PUSH else f"acts on {_listed(module.KINDS)}"
            raise EdistillError(
                f"views.transform is {spec!r}, and {name} {why}, but the data holds {arrays_told(arrays)}. For those "
                f"use {', '.join(able_views(arrays))}."
            )


def able_views(arrays: Sequence[RowArray]) -> list[str]:
    """The names of the transforms that act on at least one of the arrays."""
    return [
        name
        for name in view_names()
        if _module(name).PHASE is not Phase.PUSH and any(one.kind in _module(name).KINDS for one in arrays)
    ]


def _listed(kinds: frozenset[Kind]) -> str:
    return " and ".join(sorted(kinds))


def in_units(spec: str) -> bool:
    """Whether one of a view's transforms uses the source's `scale`, for which some sources read every row."""
    known = _VIEWS.modules
    names = (name.strip() for name in spec.split("+"))
    return any(getattr(known.get(name), "IN_UNITS", False) for name in names)


def require_kind(view: View, kind: Kind, spec: str) -> None:
    """Raise EdistillError for a view that cannot act on the data."""
    if kind not in view.kinds:
        able = [name for name in view_names() if kind in _module(name).KINDS]
        raise EdistillError(
            f"views.transform is {spec!r}, which acts on {_listed(view.kinds)}, but the data holds "
            f"{'several arrays a row' if kind == 'several' else kind}. For those use {', '.join(able)}."
        )


def _module(name: str) -> ModuleType:
    return _VIEWS[name]


def _refuse_unknown(names: Sequence[str], spec: str) -> None:
    known = view_names()
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise EdistillError(
                f"views.transform is {spec!r}, but there is no {name!r}. {hint}Use one of "
                f"{', '.join(known)}, several joined by +, or file.py:factory."
            )


def _users_view(spec: str) -> View:
    view = load_factory(spec, "views.transform")()
    if not callable(getattr(view, "plan", None)) or not isinstance(getattr(view, "kinds", None), frozenset):
        raise EdistillError(
            f"views.transform is {spec!r}, which returned a {type(view).__name__}. Return an object with "
            "plan(seed, view, row, total) and kinds, a frozenset of pixels, tensor, features, series, volume."
        )
    return UsersView(spec, cast(View, view))


class UsersView:
    """A user's view, made again in each process, since its class may come from a file that none can import by name."""

    def __init__(self, spec: str, view: View) -> None:
        self.spec, self.view, self.kinds, self.pushes = spec, view, view.kinds, pushes(view)

    def plan(self, seed: int, view: int, row: int, total: int) -> Plan:
        with told_as_own(f"views.transform {self.spec}: plan"):
            plan = self.view.plan(seed, view, row, total)
            rows = tuple(plan.rows)
        if not rows or rows[0] != row or not all(0 <= other < total for other in rows):
            raise EdistillError(
                f"views.transform {self.spec} plans rows {rows} for row {row} of {total}. The first is the row itself, "
                "and the others are rows of the split."
            )
        return UsersPlan(self.spec, plan, rows)

    def __reduce__(self) -> tuple[Callable[[str], View], tuple[str]]:
        return _users_view, (self.spec,)


class UsersPlan:
    """A plan of a user's view.

    Its errors are reported as the user's. What it renders is copied, since it may use its array again for another row.
    """

    def __init__(self, spec: str, plan: Plan, rows: tuple[int, ...]) -> None:
        self.spec, self.own, self.rows = spec, plan, rows
        self.push = getattr(plan, "push", None)

    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
        with told_as_own(f"views.transform {self.spec}: x of row {self.rows[0]}", SHARED):
            return np.array(self.own.x(items, to))

    def y(self, items: Sequence[Item]) -> tuple[Array, Array, float] | None:
        with told_as_own(f"views.transform {self.spec}: y of row {self.rows[0]}", SHARED):
            return self.own.y(items)
