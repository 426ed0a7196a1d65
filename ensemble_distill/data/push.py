"""Pushes: steps that move a rendered input along a gradient of a member, drawn from a key alone.

A push says which member, and the gradient of what. The gradient itself is computed where the members are
(`caching/gradient.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.runtime.keys import uniform_row, uniforms


@dataclass(frozen=True)
class Push:
    """A step along a member's gradient.

    Attributes:
        key: the key of what is drawn.
        step: root mean square by which the input's values move; pixels are in [0, 1].
        by_confidence: whether the step is multiplied by the member's largest probability.
    """

    key: tuple[int | str, ...]
    step: float
    by_confidence: bool

    def member(self, count: int) -> int:
        """The index of the member whose gradient is taken, uniform over `count`."""
        return int(uniforms(1, *self.key, "member")[0] * count)

    def weights(self, classes: int) -> NDArray[np.float64]:
        """(K,) weights of the classes, uniform over [-1, 1), in the data's order of classes, not in the member's."""
        return 2 * uniform_row(classes, *self.key, "weights") - 1
