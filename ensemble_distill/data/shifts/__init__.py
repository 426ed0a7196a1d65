"""Shifts: test data distorted in five severities, a shift a file, whose name is its key (`rotation.py` is "rotation").

Unlike a view, of which a row may have many, a shift is one fixed change of a whole split. `Shifted` is itself a source,
so members and student are evaluated on the same distorted rows. See `Shift` for what such a module holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np

from ensemble_distill.data.rendering import as_unit
from ensemble_distill.data.source import Array, Item, Kind, Source
from ensemble_distill.data.wrapping import Wrapping
from ensemble_distill.errors import EdistillError, nearest
from ensemble_distill.runtime.registry import Registry

SEVERITIES = (1, 2, 3, 4, 5)


class Origin(NamedTuple):
    """Where an example comes from, for shifts that need to know.

    Attributes:
        kind: the item's kind; pixels reach a shift as floats.
        row: the row, which random numbers are derived from.
        scale: (F,) the columns' standard deviations, for features only.
    """

    kind: Kind
    row: int
    scale: Array | None


class Shift(Protocol):
    """What a module of this package holds.

    Attributes:
        KINDS: the kinds that the shift can act on.
        AMOUNTS: for each of those, the amount of each severity, mildest first.
    """

    KINDS: frozenset[Kind]
    AMOUNTS: dict[Kind, tuple[float, ...]]

    def level(self, amount: float, kind: Kind) -> str:
        """The amount as a short text for tables: "18°"."""
        ...

    def apply(self, x: Array, amount: float, origin: Origin) -> Array:
        """x distorted, of its shape, in memory of its own.

        Args:
            x: float32; pixels (C, H, W) in [0, 1], any other kind as its item has it. Read-only.
            amount: one of AMOUNTS.
            origin: where x comes from.

        Returns:
            Floats. The caller clips pixels to [0, 1].
        """
        ...


class Shifted(Wrapping):
    """A source with every x distorted at its own size, before any preprocessing; the rest is the source's own.

    x keeps its dtype and shape: pixels are rounded to uint8, all else stays float32. An item is a pure function of
    (shift, severity, row) and the source's own item, whatever the order or process.

    Args:
        source: the split to distort.
        name: one of `shifts_for(source.kind)`.
        severity: 1 to 5.

    Raises:
        EdistillError: there is no such shift or severity, or the shift does not act on the source's kind.
    """

    def __init__(self, source: Source, name: str, severity: int) -> None:
        shift = _acting_on(name, source.kind)
        if severity not in SEVERITIES:
            raise EdistillError(
                f"The shift {name} has severities 1 to 5, but {severity} was asked for. Use one of those."
            )
        super().__init__(source)
        self.shift, self.severity = name, severity
        self.kind, self.classes = source.kind, source.classes
        # here, not in each loader process: some sources read every row for it
        scale = source.scale if source.kind == "features" else None
        self.scale = scale if isinstance(scale, np.ndarray) else None
        # a module's functions can be sent to other processes, the module itself cannot
        self._apply, self._amount = shift.apply, shift.AMOUNTS[source.kind][severity - 1]

    def __len__(self) -> int:
        return len(self.inner)

    def item(self, row: int) -> Item:
        item = self.inner.item(row)
        origin = Origin(item.kind, row, self.scale)
        if item.kind != "pixels":
            x = self._apply(item.x, self._amount, origin).astype(np.float32, copy=False)
        else:
            unit = self._apply(as_unit(item.x).transpose(2, 0, 1), self._amount, origin)
            x = np.ascontiguousarray(np.rint(255 * unit.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0))
        return Item(x, item.y, item.kind)

    def name(self, row: int) -> str:
        return self.inner.name(row)

    @property
    def remarks(self) -> Sequence[str]:
        return self.inner.remarks

    @property
    def labels(self) -> Array | None:
        return self.inner.labels

    @property
    def level(self) -> str:
        """What the severity means here: "18°"."""
        return levels(self.shift, self.kind)[self.severity - 1]

    @property
    def digest(self) -> str:
        """sha256 of the source's digest, the shift, the severity, and its amount, which a later version may change."""
        parts = ("shift", self.inner.digest, self.shift, str(self.severity), self.level)
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    @property
    def digest_scope(self) -> str:
        return f"{self.inner.digest_scope}; {self.shift} of severity {self.severity} ({self.level})"


_SHIFTS = Registry(__name__, "AMOUNTS")


def shift_names() -> tuple[str, ...]:
    """Names of the shifts, sorted."""
    return _SHIFTS.keys


def shifts_for(kind: Kind) -> tuple[str, ...]:
    """Names of the shifts that can act on data of a kind, sorted."""
    return tuple(name for name in shift_names() if kind in open_shift(name).KINDS)


def refuse_no_shift(kind: Kind, named: str) -> None:
    """Raise EdistillError if no shift can distort rows of a kind.

    Args:
        kind: the kind of the rows.
        named: what holds them, for the message.
    """
    if not shifts_for(kind):
        what = "several arrays a row" if kind == "several" else kind
        raise EdistillError(
            f"--shifts distorts rows, and no shift acts on {what}, which {named} holds. Leave it out; of other rows, "
            "each as a data.ood.NAME, evaluate tells how much more uncertain a student is there."
        )


def levels(name: str, kind: Kind = "pixels") -> tuple[str, ...]:
    """What each severity of a shift means on data of a kind, as short texts for tables: "18°", "36°", …

    Raises:
        EdistillError: there is no such shift, or it does not act on that kind.
    """
    shift = _acting_on(name, kind)
    return tuple(shift.level(amount, kind) for amount in shift.AMOUNTS[kind])


def open_shift(name: str) -> Shift:
    """The shift of a name.

    Raises:
        EdistillError: there is none of that name.
    """
    known = shift_names()
    if name not in known:
        close = nearest(name, known)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise EdistillError(f"There is no shift {name!r}. {hint}Use one of {', '.join(known)}.")
    return cast(Shift, _SHIFTS[name])


def _acting_on(name: str, kind: Kind) -> Shift:
    shift = open_shift(name)
    if kind not in shift.KINDS:
        raise EdistillError(
            f"The shift {name} acts on {' and '.join(sorted(shift.KINDS))}, but the data holds {kind}. "
            f"For those use {', '.join(shifts_for(kind))}."
        )
    return shift
