"""From a text to a network's input: cut into tokens, their ids beside the mask that says which of them are the text's.

What a tokenizer gives of a text is a table of named arrays of one length, and a network takes it as one. On the way
from here to there it is one array, a row a field: so it is stacked, moved, kept and compared as any other input, and
nothing that handles inputs asks what they are. `Tokenization.fields` names the rows again where a network takes them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import LONGEST, Tokenization, Tokenizer

BETWEEN = b"\xff"  # the two texts of a pair; no byte of UTF-8
INSTALL = "pip install 'edistill[text]'"


def encoded(text: Array, to: Tokenization) -> Array:
    """The rows of `to.fields`, int64 (fields, L).

    Args:
        text: in UTF-8, uint8 (n,); or two, with `BETWEEN` between them, which the tokenizer joins as pairs.

    Raises:
        EdistillError: `tokenizers` is not installed, or the tokenizer is none.
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
    """One more than the largest id that it gives. Raises EdistillError as `encoded` does."""
    return max(_opened(tokenizer, 1, False).get_vocab(with_added_tokens=True).values(), default=-1) + 1


def tells_texts_apart(tokenizer: Tokenizer) -> bool:
    """Whether it says of a pair's tokens which text they are of. Raises EdistillError as `encoded` does."""
    return any(_opened(tokenizer, LONGEST, True).encode("a", "b").type_ids)


@lru_cache(maxsize=64)
def _opened(tokenizer: Tokenizer, length: int, pairs: bool) -> Any:
    """The tokenizer as it cuts texts to a length, whatever its file says of that; of a pair the longer one first."""
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
    except Exception as error:  # its errors share no class of their own
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
