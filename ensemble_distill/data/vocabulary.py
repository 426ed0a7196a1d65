"""The tokens of a text and their ids: how a text is cut, and which tokens there are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import memory, read_whole, refuse_special
from ensemble_distill.runtime.jsons import parse_json

UNKNOWN, END = "<unk>", "<eos>"
NEWLINE = "\n"  # what ends a line of characters
UNITS = ("word", "character")


@dataclass(frozen=True)
class Reading:
    """How a stream of tokens becomes rows.

    Attributes:
        unit: what a token of a text is: a word between white space, or a character.
        window: how many tokens of a row are predicted.
        context: how many tokens before those a network is shown; they are predicted in the rows before.
        vocabulary: a file that lists the tokens; see `read_vocabulary`.
        built_from: the text whose tokens make the vocabulary if no file lists them; see `built`.
        size: the size of a vocabulary that is built from a text, special tokens included; None for all tokens.
        known: the tokens, if they are known already.
        short: whether a text may be shorter than a window.
    """

    unit: str = "word"
    window: int = 35
    context: int = 35
    vocabulary: str | None = None
    built_from: str | None = None
    size: int | None = None
    known: tuple[str, ...] | None = None
    short: bool = False

    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their ids.

        Raises:
            EdistillError: nothing says which there are, or the file that should does not list tokens.
        """
        if self.known is not None:
            return self.known
        if self.vocabulary is not None:
            return read_vocabulary(Path(self.vocabulary))
        if self.built_from is None or not is_text(self.built_from):
            raise EdistillError(
                "Nothing says which tokens there are: data.train is not text. Set tokens.vocabulary to a file with one "
                "token a line, in the order of their ids."
            )
        path = Path(self.built_from)
        return _built(path, self.unit, self.size, _stamp(path))


def is_text(source: str) -> bool:
    """Whether a source is a text file, by its extension."""
    return source.endswith((".txt", ".tokens"))


def read_text(path: Path) -> str:
    """The text of a file. Raises EdistillError if it cannot be read, is not UTF-8, or does not fit into memory."""
    refuse_special(str(path))
    try:
        if (size := path.stat().st_size) > memory() // 8:
            raise EdistillError(f"{path} has {size:,} bytes, which do not fit into memory as tokens. Cut it in parts.")
        return read_whole(path).decode("utf-8-sig")  # a byte-order mark is not part of the first token
    except UnicodeDecodeError as error:
        raise EdistillError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.reason}. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise EdistillError(f"{path} cannot be read: {error.strerror}. Restore it.") from None


def cut(text: str, unit: str) -> list[str]:
    """The tokens of a text: its characters, or its words between white space, with `<eos>` after each line."""
    if unit == "character":
        return list(text)
    lines = text.removesuffix(NEWLINE).split(NEWLINE) if text else []
    return [token for line in lines for token in (*line.split(), END)]


def built(tokens: Iterable[str], unit: str, size: int | None) -> tuple[str, ...]:
    """The vocabulary of a text: `<unk>`, for words `<eos>`, and the text's tokens.

    The most frequent tokens come first, equally frequent ones in the order of their code points.

    Args:
        size: how many tokens to keep in all; None for every one.
    """
    special = (UNKNOWN, END) if unit == "word" else (UNKNOWN,)
    counts = Counter(tokens)
    others = sorted((token for token in counts if token not in special), key=lambda token: (-counts[token], token))
    return (*special, *others)[:size]


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """The tokens that a file lists: one a line, or in a `.json` as an array of strings.

    Raises:
        EdistillError: it lists fewer than two tokens, one twice, or something other than text.
    """
    text = read_text(path)
    if path.suffix == ".json":
        try:
            tokens = parse_json(text)
        except ValueError as error:
            raise EdistillError(f"{path} is not JSON: {error}. Write a list of texts.") from None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise EdistillError(f"{path} is not a list of texts. Write the tokens as one, in the order of their ids.")
    else:
        lines = text.removesuffix(NEWLINE).split(NEWLINE)
        tokens = [line if line == "\r" else line.removesuffix("\r") for line in lines]
    counts = Counter(tokens)
    twice = next((token for token in tokens if counts[token] > 1), None)
    if twice is not None:
        raise EdistillError(f"{path} lists the token {json.dumps(twice)} {counts[twice]} times. List each once.")
    if len(tokens) > 1 and "" in counts:
        raise EdistillError(f"{path} lists an empty token after {tokens.index('')} others. Remove it.")
    if len(tokens) < 2:
        raise EdistillError(f"{path} lists {len(tokens) - counts['']} tokens. List at least two, one a line.")
    return tuple(tokens)


def as_ids(tokens: Sequence[str], vocabulary: Sequence[str], path: Path) -> NDArray[np.int64]:
    """The ids of tokens, (T,); a token outside the vocabulary gets that of `<unk>`.

    Raises:
        EdistillError: a token is outside a vocabulary that has no `<unk>`.
    """
    at: Mapping[str, int] = {token: index for index, token in enumerate(vocabulary)}
    unknown = at.get(UNKNOWN)
    if unknown is None:
        outside = next((index for index, token in enumerate(tokens) if token not in at), None)
        if outside is not None:
            raise EdistillError(
                f"{path}: token {outside}, {json.dumps(tokens[outside], ensure_ascii=False)}, is outside the "
                f"vocabulary of {len(vocabulary)}, which has no {UNKNOWN}. Add the token or {UNKNOWN} to "
                "tokens.vocabulary."
            )
        unknown = 0
    return np.fromiter((at.get(token, unknown) for token in tokens), np.int64, len(tokens))


def filler(vocabulary: Sequence[str]) -> int:
    """The id that stands before the beginning of a stream: that of `<eos>` or a newline, otherwise 0."""
    return next((vocabulary.index(token) for token in (END, NEWLINE) if token in vocabulary), 0)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise EdistillError(f"{path} cannot be read: {error.strerror}. Restore it.") from None
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)
def _built(path: Path, unit: str, size: int | None, stamp: tuple[int, int]) -> tuple[str, ...]:
    """The vocabulary of a text file, cached. `stamp` changes whenever the file does."""
    return built(cut(read_text(path), unit), unit, size)
