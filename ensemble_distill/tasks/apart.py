"""How far answers may lie from others and be the same."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class Apart(NamedTuple):
    """How far answers may lie from others and be the same.

    Attributes:
        scale: what differences are shares of, (W,) or a number.
        least: by so much they may always differ.
    """

    scale: float | NDArray[Any]
    least: float | NDArray[Any]
