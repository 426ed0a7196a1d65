"""Output Diversified Sampling (Tashiro et al. 2020, arXiv:2003.06878), as Nam et al. (2021, arXiv:2110.14149) use it.

A rendered input x in [0, 1] becomes clamp(x + step · √D · g ÷ ‖g‖₂), where g = ∇_x w·softmax(z), w ~ U(−1, 1)^K, z are
the logits of one member, and x has D values. All members then label that input, on which they differ more than on x.

The step of 1/255 and the clamp are the released code's. Its softmax uses the distillation's temperature, which its
instructions give as 1 beside their results and as 4 elsewhere. Here the temperature belongs to the training, and one
cache serves any, so the softmax uses 1. That code draws one member per batch and w per row. Here both are drawn for
each row and view, so that they do not depend on how rows are batched, and the views of a row take gradients of several
members.

These inputs follow from the members' weights, not from (seed, view, row) alone, so the cache stores them.
"""

from __future__ import annotations

from ensemble_distill.data.push import Push
from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Kind

PHASE = Phase.PUSH
# the step is too small for features: 1/255 of a column's deviation, over a few columns, changes no member's answer
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
STEP = 1 / 255  # root mean square over the input's values; for tensors as they are, which are not clamped


def draw(key: Key) -> Push:
    return Push(key, STEP, by_confidence=False)
