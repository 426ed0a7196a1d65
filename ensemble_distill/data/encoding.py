"""From a text to a network's input: the ids of its tokens, the mask that tells them from padding, and token types.

A tokenizer makes several named arrays of equal length, and a network takes them by name. Between the two they are one
array with a row per field. So they are stacked, moved, kept and compared like any other input, and no code that handles
inputs needs to know what they are. `Tokenization.fields` names the rows again where a network takes them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import LONGEST, Tokenization, Tokenizer

BETWEEN = b"\xff"  # separates the two texts of a pair; UTF-8 never contains it
INSTALL = "pip install 'edistill[text]'"


def encoded(text: Array, to: Tokenization) -> Array:
    """A text's tokens, int64 (fields, L), a row for each of `to.fields`.

    Args:
        text: UTF-8, uint8 (n,); or two texts with `BETWEEN` between them, which the tokenizer joins as a pair.

    Raises:
        EdistillError: the package `tokenizers` is not installed, the tokenizer cannot be read, or it adds so many
            tokens of its own that none are left for the text.
    """
    texts = [one.decode() for one in text.tobytes().split(BETWEEN)]
    tokens = _opened(to.tokenizer, to.length, len(texts) == 2).encode(*texts)
    found = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
    rows = np.zeros(to.shape, np.int64)
    for row, field in zip(rows, to.fields, strict=True):
        if field == "input_ids":
            row[:] = to.pad
        row[: len(tokens.ids)] = found[field]
    return rows


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id in the tokenizer's vocabulary. Raises EdistillError as `encoded` does."""
    return max(_opened(tokenizer, 1, False).get_vocab(with_added_tokens=True).values(), default=-1) + 1


def tells_texts_apart(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer marks which text of a pair each token is from. Raises EdistillError as `encoded` does."""
    return any(_opened(tokenizer, LONGEST, True).encode("a", "b").type_ids)


@lru_cache(maxsize=64)
def _opened(tokenizer: Tokenizer, length: int, pairs: bool) -> Any:
    """The tokenizer, set to cut texts to a length whatever its file says; in a pair, the longer text is cut first."""
    try:
        import tokenizers
    except ImportError:
        raise EdistillError(
            f"Texts are cut into tokens by the package tokenizers, which is not installed. Install it: {INSTALL}."
        ) from None
    if tokenizer.content is None:
        raise EdistillError(f"The tokenizer {tokenizer.sha256[:12]}… is not at hand. Restore the file that holds it.")
    try:
        opened = tokenizers.Tokenizer.from_str(tokenizer.content)
        opened.no_padding()
        opened.no_truncation()
        special: int = opened.num_special_tokens_to_add(is_pair=pairs)
        if special < length:
            opened.enable_truncation(length)
    except Exception as error:  # errors of tokenizers share no base class
        raise EdistillError(
            f"The tokenizer {tokenizer.sha256[:12]}… is none that tokenizers {tokenizers.__version__} reads: "
            f"{first_line(error)}. Save it again: tokenizer.save_pretrained(folder)."
        ) from None
    if special >= length > 1:
        raise EdistillError(
            f"{'Two texts are' if pairs else 'A text is'} cut to {length} tokens, and the tokenizer adds {special} of "
            f"its own. Set preprocessing.length to {special + 1} or more."
        )
    return opened
