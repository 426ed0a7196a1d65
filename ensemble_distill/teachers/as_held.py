"""Rows as the data holds them, for ensembles without a preprocessing: ready-made outputs need no inputs.

Pictures keep their size, with pixels in [0, 1]; texts become their bytes; arrays are unchanged.
"""

from __future__ import annotations

import json
from functools import cache, partial
from typing import Literal

from ensemble_distill.data.several import arrays_of, of_pairs
from ensemble_distill.data.source import Source
from ensemble_distill.facts import AnyPreprocessing, Preprocessing, RowArray, Tokenization, Tokenizer
from ensemble_distill.teachers.several import as_taken

Fields = tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...]

BYTES = 512  # maximum length of a text
OF_ONE: Fields = ("input_ids", "attention_mask")
OF_PAIRS: Fields = (*OF_ONE, "token_type_ids")


def as_held(source: Source, size: tuple[int, int] | None = None, length: int = BYTES) -> AnyPreprocessing | None:
    """The preprocessing that keeps rows as they are; None for arrays, which need none.

    Args:
        size: of pictures; by default the size of the first row's picture, for each array separately.
        length: maximum number of bytes of a text; see `bytes_of`.
    """
    how = partial(_held, pairs=of_pairs(source), size=size, length=length)
    if (arrays := arrays_of(source)) is not None:
        return as_taken("The data", arrays, {array.name: array.name for array in arrays}, how)
    if source.kind not in ("pixels", "text"):
        return None
    return how(RowArray("x", source.kind, source.item(0).x.shape))


def _held(
    array: RowArray, *, pairs: bool, size: tuple[int, int] | None, length: int
) -> Preprocessing | Tokenization | None:
    if array.kind == "pixels":
        return Preprocessing(size or array.shape[:2], (0.0,), (1.0,))
    if array.kind == "text":
        return Tokenization(bytes_of(), length, OF_PAIRS if pairs else OF_ONE)
    return None


@cache
def bytes_of() -> Tokenizer:
    """A tokenizer whose tokens are the UTF-8 bytes of a text; a token's id is its byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]  # the library writes them as characters from 256 on
    characters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    record = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": {characters[byte]: byte for byte in range(256)}, "merges": []},
    }
    return Tokenizer.of(json.dumps(record))
