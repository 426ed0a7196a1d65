"""Output Diversified Sampling (Tashiro et al. 2020, arXiv:2003.06878), which Nam et al. (2021, arXiv:2110.14149) distill on.

A rendered input x in [0, 1] becomes clamp(x + step · √D · g ÷ ‖g‖₂) for g = ∇_x w·softmax(z), w ~ U(−1, 1)^K, the
logits z of one member, and D values in x. All members then label that input, on which they differ more than on x.

Both the step, 1/255, and the clamp are the paper's; softmax is at temperature 1. The released code takes the
distillation's own temperature there, which its instructions give as 1 beside the results and as 4 elsewhere; here a
temperature belongs to the training, and a cache serves any. The released code draws one member a batch and w a row; here
both are drawn for each row and view, so that they do not depend on which rows stand in a batch, and the views of a row ask
several members.

Such inputs follow from the members' weights and not from (seed, view, row) alone: the cache stores them.
"""

from __future__ import annotations

from ensemble_distill.data.push import Push
from ensemble_distill.data.rendition import Key, Stage
from ensemble_distill.data.source import Kind

STAGE = Stage.PUSH
# the step has no meaning on features: a 255th of a column's deviation, over a few columns, changes nobody's mind
KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
STEP = 1 / 255  # root mean square over the input's values; of tensors as they are, which are not clamped


def draw(key: Key) -> Push:
    return Push(key, STEP, by_confidence=False)
