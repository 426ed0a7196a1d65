"""Rows that are pictures in files of any kind, decoded at access, and kept if they are small as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

from ensemble_distill.data.memo import Memo
from ensemble_distill.data.source import Array, Item, Kind
from ensemble_distill.errors import EdistillError


class Pictures(ABC):
    """Pictures as rows, decoded to uint8 RGB (H, W, 3), each in its own size.

    Args:
        count: the number of pictures.
        labels: (N,) or (N, D), or None.
        classes: names in the order of the labels, or None.
        remarks: see `Source`.
    """

    kind: Kind = "pixels"
    scale: Array | None = None

    def __init__(
        self, count: int, labels: Array | None, classes: tuple[str, ...] | None, remarks: Sequence[str] = ()
    ) -> None:
        self._count, self.labels, self.classes, self.remarks = count, labels, classes, remarks
        self._memo: Memo[Item] = Memo(count)

    def __len__(self) -> int:
        return self._count

    def item(self, row: int) -> Item:
        """Decodes the picture. Raises EdistillError if it does not decode."""
        return self._memo.get(row, self._read)

    def _read(self, row: int) -> Item:
        try:
            pixels = self._decoded(row)
        except EdistillError:
            raise
        except Exception as error:  # each of Pillow's decoders raises errors of its own
            raise EdistillError(self._undecodable(row, error)) from error
        return Item(pixels, None if self.labels is None else self.labels[row], self.kind)

    @property
    def digest(self) -> str:
        return self._digest[0]

    @property
    def digest_scope(self) -> str:
        return self._digest[1]

    @cached_property
    def _digest(self) -> tuple[str, str]:
        return self._digested()

    @abstractmethod
    def name(self, row: int) -> str:
        """See `Source`."""

    @abstractmethod
    def _decoded(self, row: int) -> Array:
        """The picture, uint8 (H, W, 3)."""

    @abstractmethod
    def _undecodable(self, row: int, error: Exception) -> str:
        """The message about a picture that does not decode, with what to do about it."""

    @abstractmethod
    def _digested(self) -> tuple[str, str]:
        """The digest, and a description of what it covers."""
