"""Output Diversified Sampling (Tashiro et al. 2020, arXiv:2003.06878), as Nam et al. (2021, arXiv:2110.14149) distill.

A rendered input x in [0, 1] becomes clamp(x + step · √D · g ÷ ‖g‖₂) for g = ∇_x w·softmax(z), w ~ U(−1, 1)^K, the
logits z of one member, and D values in x. All members then label that input, on which they differ more than on x.

The step of 1/255 and the clamp are the released code's. Its softmax has the distillation's own temperature, which its
instructions give as 1 beside their results and elsewhere as 4; here the temperature belongs to the training and one
cache serves any, so it is 1. That code draws one member a batch and w a row. Here both are drawn for each row and view:
they do not depend on which rows stand in a batch, and the views of a row ask several members.

Such inputs follow from the members' weights and not from (seed, view, row) alone: the cache stores them.
"""

from __future__ import annotations

from ensemble_distill.data.push import Push
from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Kind

PHASE = Phase.PUSH
# the step has no meaning on features: a 255th of a column's deviation, over a few columns, changes nobody's mind
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
STEP = 1 / 255  # root mean square over the input's values; of tensors as they are, which are not clamped


def draw(key: Key) -> Push:
    return Push(key, STEP, by_confidence=False)
