"""A push: which member moves a rendered input, along the gradient of what. It is drawn from a key alone.

The gradient itself is taken where members are (`caching/gradient.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.runtime.keys import uniform_row, uniforms


@dataclass(frozen=True)
class Push:
    """Attributes:
    key: of what is drawn.
    step: root mean square by which the input's values move, in [0, 1] for pixels.
    by_confidence: the step is multiplied by the member's largest probability.
    """

    key: tuple[int | str, ...]
    step: float
    by_confidence: bool

    def member(self, count: int) -> int:
        """The position of the member asked, uniform over `count`."""
        return int(uniforms(1, *self.key, "member")[0] * count)

    def weights(self, classes: int) -> NDArray[np.float64]:
        """(K,) uniform over [-1, 1): of the data's classes in their order, whatever the member's own."""
        return 2 * uniform_row(classes, *self.key, "weights") - 1
