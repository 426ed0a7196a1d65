"""Leaves out words of texts by chance.

It drops words, not tokens, before any tokenizer sees the text: members may tokenize differently, but must all see the
same view. Tokens that a tokenizer adds, such as a beginning and an end, are there in every view.
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
SHARE = 0.15  # of the words that are left out, on average

_WORD = re.compile(r"\s*\S+")  # with the space before it


@dataclass(frozen=True)
class Dropout:
    """Which words are left out.

    Attributes:
        key: the key of the draw.
    """

    key: Key

    def apply(self, x: Array, kind: Kind) -> Array:
        """The text, or each text of a pair, without some of its words; at least one word of each stays."""
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
