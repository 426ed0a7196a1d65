"""What a split is to the rest of the house: rows that decode to items, and views that render them.

Everything here and beside it runs without torch, so that `predict` and the command line start fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ensemble_distill.facts import AnyPreprocessing
from ensemble_distill.facts import Kind as Kind

Array = NDArray[Any]
Scale = Array | Mapping[str, Array]  # of several arrays that of each which has one


@dataclass(frozen=True)
class Item:
    """One example, undistorted. Several views and preprocessings are given the same one, so none may write into it.

    Attributes:
        x: pixels: uint8 (H, W, C); tensor, series, volume: float32 (C, H, W), (C, L), (C, D, H, W), already
            preprocessed; features: float32 (F,); tokens: int64 ids (C + L,); text: UTF-8, uint8 (n,); several: what
            `several.joined` makes of them. Read-only.
        y: the class (int64) or the target (float32), a scalar; (K,) or (D,) of several labels or targets; (L,) of
            positions. None where the split has no labels.
        kind: which of these `x` is.
    """

    x: Array
    y: Array | None
    kind: Kind

    def __post_init__(self) -> None:
        x = self.x.view()  # whoever made the array may go on writing into it
        x.flags.writeable = False
        object.__setattr__(self, "x", x)


class Source(Protocol):
    """One split. Rows are its examples' fixed indices, 0 to len − 1, the same on every machine."""

    kind: Kind
    classes: tuple[str, ...] | None  # names of classes, labels or targets in their order; None without names

    @property
    def remarks(self) -> Sequence[str]: ...  # what was passed over in reading it, a sentence each, to be warned of
    @property
    def scale(self) -> Scale | None: ...  # the unit of noise; see `scale.py`
    @property
    def digest(self) -> str: ...  # sha256 hex of the contents, cheap and honest; see `digests.py`
    @property
    def digest_scope(self) -> str: ...  # what the digest covers, in words for the manifest
    @property
    def labels(self) -> Array | None: ...  # (N,) or (N, D): int64 classes or float32 targets; nothing is decoded
    def __len__(self) -> int: ...
    def item(self, row: int) -> Item: ...  # decodes; raises EdistillError naming the row, never skips it
    def name(self, row: int) -> str: ...  # for messages and predict: a file's relative name, or "row 17"


class Inputs(Sequence[Array]):
    """What the items of a source hold, one after the other; none is kept."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):  # which ends a loop
            raise IndexError(row)
        return self.source.item(row).x


def positions_of(source: Source) -> int | None:
    """How many positions of a row are told, which are its last; None where a row is told as a whole."""
    if source.kind != "tokens":
        return None
    labels = source.labels
    return int(source.item(0).x.shape[0] if labels is None else labels.shape[1])


class Plan(Protocol):
    """One seeded rendition of one row: geometry without size, so all members see the same view."""

    @property
    def rows(self) -> tuple[int, ...]: ...  # the rows it reads: its own first; mixup reads two

    def x(self, items: Sequence[Item], to: AnyPreprocessing | None) -> Array:
        """The network's input, float32: (C, H, W) for pixels, for all else of x's shape; of texts int64 (fields, L); of
        several arrays (n,), as `Several` says."""
        ...

    def y(self, items: Sequence[Item]) -> tuple[Array, Array, float] | None:
        """(own label, partner's label, weight of the own one); None without labels."""
        ...


class View(Protocol):
    """A transform: pure in (seed, view, row), whatever the order, worker, rank or process."""

    @property
    def kinds(self) -> frozenset[Kind]: ...  # what it can render
    def plan(self, seed: int, view: int, row: int, total: int) -> Plan: ...  # total: rows in the split
