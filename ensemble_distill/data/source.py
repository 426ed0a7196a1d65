"""The interfaces of a split: a source, whose rows decode to items, and the views that render them.

This package runs without torch, so that `predict` and the command line start fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ensemble_distill.facts import AnyPreprocessing
from ensemble_distill.facts import Kind as Kind

Array = NDArray[Any]
Scale = Array | Mapping[str, Array]  # a mapping for rows of several arrays: the scale of each array that has one


@dataclass(frozen=True)
class Item:
    """One undistorted example. Views and preprocessings share it, so none may write into it.

    Attributes:
        x: pixels: uint8 (H, W, C); tensor, series, volume: float32 (C, H, W), (C, L), (C, D, H, W), already
            preprocessed; features: float32 (F,); tokens: int64 ids (C + L,), context and window; text: UTF-8,
            uint8 (n,); several: see `several.joined`. Read-only.
        y: the class (int64) or the target (float32), a scalar; (K,) or (D,) for several labels or targets; (L,) for
            positions. None if the split has no labels.
        kind: which of these `x` is.
    """

    x: Array
    y: Array | None
    kind: Kind

    def __post_init__(self) -> None:
        x = self.x.view()  # the array's owner may go on writing into it
        x.flags.writeable = False
        object.__setattr__(self, "x", x)


class Source(Protocol):
    """One split. A row is an example's fixed index, 0 to len − 1, the same on every machine."""

    kind: Kind
    classes: tuple[str, ...] | None  # names of classes, labels or targets in their order; None without names

    @property
    def remarks(self) -> Sequence[str]: ...  # warnings for the user, such as what was skipped in reading
    @property
    def scale(self) -> Scale | None: ...  # the unit of noise; see `scale.py`
    @property
    def digest(self) -> str: ...  # sha256 hex of the contents, cheap and honest; see `digests.py`
    @property
    def digest_scope(self) -> str: ...  # what the digest covers, in words for the manifest
    @property
    def labels(self) -> Array | None: ...  # (N, …): `Item.y` of all rows; only a factory may read rows for them
    def __len__(self) -> int: ...
    def item(self, row: int) -> Item: ...  # decodes; raises EdistillError naming the row, never skips it
    def name(self, row: int) -> str: ...  # for messages and predict: a file's relative name, or "row 17"


class Inputs(Sequence[Array]):
    """The inputs `x` of a source's rows as a sequence; each is decoded at every access."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):  # ends an iteration
            raise IndexError(row)
        return self.source.item(row).x


def positions_of(source: Source) -> int | None:
    """How many positions of a row are predicted, always its last ones; None if a row has one answer as a whole."""
    if source.kind != "tokens":
        return None
    labels = source.labels
    return int(source.item(0).x.shape[0] if labels is None else labels.shape[1])


class Plan(Protocol):
    """One seeded rendition of one row. Its geometry has no size, so members of any input size see the same view."""

    @property
    def rows(self) -> tuple[int, ...]: ...  # the rows it reads, its own first; mixup reads two

    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
        """The network's input, float32: (C, H, W) for pixels, (n,) for several arrays (see `Several`), otherwise of x's
        shape. Texts become int64 (fields, L)."""
        ...

    def y(self, items: Sequence[Item]) -> tuple[Array, Array, float] | None:
        """(own label, partner's label, weight of the own label); None without labels."""
        ...


class View(Protocol):
    """A transform: a pure function of (seed, view, row), whatever the order, worker, rank or process."""

    @property
    def kinds(self) -> frozenset[Kind]: ...  # the kinds it can render
    def plan(self, seed: int, view: int, row: int, total: int) -> Plan: ...  # total: rows in the split
