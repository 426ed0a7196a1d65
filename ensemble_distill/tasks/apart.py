"""How far apart two answers may lie and still count as the same."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class Apart(NamedTuple):
    """How far apart two answers may lie and still count as the same.

    Attributes:
        scale: the size that differences are relative to, (W,) or a number.
        least: the difference that is always allowed, (W,) or a number.
    """

    scale: float | NDArray[Any]
    least: float | NDArray[Any]
