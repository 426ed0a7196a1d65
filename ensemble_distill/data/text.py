"""Text files in UTF-8, `.txt` or `.tokens`: a stream of words or characters; for tasks of whole rows, a row a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.data.entry import Entry
from ensemble_distill.data.source import Source
from ensemble_distill.data.texts import Texts
from ensemble_distill.data.token_stream import TokenStream
from ensemble_distill.data.vocabulary import NEWLINE, UNKNOWN, Reading, as_ids, cut, filler, is_text, read_text
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError
from ensemble_distill.tasks import Task

MOSTLY = 0.5  # share of a text's tokens beyond which unknown ones are remarked on


def claims(source: str) -> bool:
    return is_text(source) and not is_folder(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The text's tokens in their order; or its lines, without labels, if the task is not about tokens.

    Raises:
        EdistillError: the text cannot be read, is shorter than a window, or is empty.
    """
    entry.refuse_names()
    if not task.of_tokens:
        return lines(Path(entry.source))
    path, reading = Path(entry.source), entry.reading or Reading()
    tokens = cut(read_text(path), reading.unit)
    refuse_short(path, len(tokens), reading)
    vocabulary = reading.tokens()
    ids = as_ids(tokens, vocabulary, path)
    end, remarks = filler(vocabulary), _mostly_unknown(ids, vocabulary)
    return TokenStream(ids, reading.window, reading.context, vocabulary, reading.unit, end, remarks)


def _mostly_unknown(ids: NDArray[np.int64], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """A remark if more than half of a text is outside the vocabulary, since predicting `<unk>` well says little."""
    if UNKNOWN not in vocabulary:
        return ()
    share = float((ids == vocabulary.index(UNKNOWN)).mean())
    if share <= MOSTLY:
        return ()
    return (f"{100 * share:.0f} % of its tokens are outside the vocabulary, and so {UNKNOWN}. Give a larger one.",)


def lines(path: Path) -> Texts:
    """A row a line, empty ones included. Raises EdistillError if there is none."""
    text = read_text(path)
    if not text:
        raise EdistillError(f"{path} has no lines. Give a text with one at least, a row each.")
    return Texts(text.removesuffix(NEWLINE).replace(f"\r{NEWLINE}", NEWLINE).split(NEWLINE), None, None)


def refuse_no_tokens(source: str, task: type[Task]) -> None:
    """Raise EdistillError for a stream of tokens if the task is not about tokens."""
    if not task.of_tokens:
        raise EdistillError(
            f'{source} is a stream of tokens, and the task is {task.key}. Set task = "language-modelling", or give '
            "data of another kind."
        )


def refuse_short(path: Path, count: int, reading: Reading) -> None:
    """Raise EdistillError for a stream that is empty or, unless `reading.short`, does not fill a window."""
    if not count:
        raise EdistillError(f"{path} has 0 tokens. Give a stream that has some.")
    if count < reading.window and not reading.short:
        raise EdistillError(
            f"{path} has {count} tokens, and a window has {reading.window}. Give a longer text, or set tokens.window "
            f"to {count} or less."
        )
