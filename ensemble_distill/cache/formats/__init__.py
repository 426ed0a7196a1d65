"""Record formats: how the numbers of a row become a fixed number of bytes. One file per format; its name is the key.

Each file has `layout(shape, dtype)`, the NumPy record of one row; `encode(values, record)`, from (B, *shape) to B
records; and `decode(records)`, back to float32. Its docstring says what is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.runtime.registry import Registry


class FormatFile(Protocol):
    """The functions of a file of this package."""

    def layout(self, shape: Sequence[int], dtype: str) -> np.dtype[np.void]: ...
    def encode(self, values: NDArray[np.floating[Any]], record: np.dtype[np.void]) -> NDArray[np.void]: ...
    def decode(self, records: NDArray[np.void]) -> NDArray[np.float32]: ...


_FORMATS = Registry(__name__, "layout")


@dataclass(frozen=True)
class Format:
    """How rows of one shape are stored.

    Attributes:
        name: name of the format's file.
        shape: shape of a row's values.
        dtype: passed to the file's `layout`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """The record of one row."""
        return _file(self.name).layout(self.shape, self.dtype)

    def encode(self, values: NDArray[np.floating[Any]]) -> NDArray[np.void]:
        """Encode values (B, *shape), each row finite or all NaN, as B records."""
        return _file(self.name).encode(values, self.record)

    def decode(self, records: NDArray[np.void]) -> NDArray[np.float32]:
        """Decode B records to values (B, *shape)."""
        return _file(self.name).decode(records)

    def unanswered(self, records: NDArray[np.void]) -> int:
        """The number of records among B whose row was not answered."""
        return int(np.isnan(self.decode(records)).reshape(len(records), -1).all(1).sum())


@cache
def _file(name: str) -> FormatFile:
    return cast(FormatFile, _FORMATS[name])
