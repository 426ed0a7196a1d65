"""Words left out by chance, of texts.

Words and not tokens, before any tokenizer sees the text: members may cut it each in their own way, and all of them are
to be asked about the same view. What a tokenizer adds, as a beginning and an end, is there in every view.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ensemble_distill.data.rendition import Key, Phase
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.runtime.keys import uniform_row

PHASE = Phase.NOISE
KINDS: frozenset[Kind] = frozenset({"text"})
SHARE = 0.15  # of the words, on average, that are left out

_WORD = re.compile(r"\s*\S+")  # with the space before it


@dataclass(frozen=True)
class Dropout:
    """Attributes:
    key: that of which words are left out.
    """

    key: Key

    def apply(self, x: Array, kind: Kind) -> Array:
        """The text without some of its words; one at least stays, and a text of one word as it is."""
        words = _WORD.findall(x.tobytes().decode())
        drawn = uniform_row(len(words), *self.key)
        kept = [word for word, number in zip(words, drawn, strict=True) if number >= SHARE]
        if len(kept) == len(words):
            return x
        kept = kept or [words[int(drawn.argmax())]]
        return np.frombuffer("".join(kept).encode(), np.uint8)


def draw(key: Key, scale: Array | None) -> Dropout:
    return Dropout(key)
