"""ODS with a step in proportion to the member's confidence (ConfODS; Nam et al. 2021, arXiv:2110.14149).

The step is that of `ods` times max_k softmax(z)_k of the member whose gradient is taken: rows that the member is unsure
of move less. This follows the released code; for its temperature, see `ods`.
"""

from __future__ import annotations

from ensemble_distill.data.push import Push
from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Kind
from ensemble_distill.data.views import ods

PHASE = Phase.PUSH
KINDS: frozenset[Kind] = ods.KINDS


def draw(key: Key) -> Push:
    return Push(key, ods.STEP, by_confidence=True)
