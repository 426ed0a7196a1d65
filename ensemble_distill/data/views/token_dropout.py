"""Words left out by chance, of texts.

Words and not tokens, before any tokenizer sees the text: members may cut it each in their own way, and all of them are
to be asked about the same view. What a tokenizer adds, as a beginning and an end, is there in every view.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ensemble_distill.data.encoding import BETWEEN
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
        """The text without some of its words, of a pair each of the two; one at least stays, and a text of one word as
        it is."""
        texts = x.tobytes().split(BETWEEN)
        words = [_WORD.findall(text.decode()) for text in texts]
        ends = np.cumsum([len(some) for some in words])
        drawn = np.split(uniform_row(int(ends[-1]), *self.key), ends[:-1])
        return np.frombuffer(BETWEEN.join(map(_without, texts, words, drawn)), np.uint8)


def _without(text: bytes, words: list[str], drawn: Array) -> bytes:
    kept = [word for word, number in zip(words, drawn, strict=True) if number >= SHARE]
    if len(kept) == len(words):
        return text
    kept = kept or [words[int(drawn.argmax())]]
    return "".join(kept).encode()


def draw(key: Key, scale: Array | None) -> Dropout:
    return Dropout(key)
