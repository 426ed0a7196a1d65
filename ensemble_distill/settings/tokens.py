"""The table `[tokens]` of `edistill.toml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ensemble_distill.settings.paths import PathText
from ensemble_distill.settings.section import WIDEST, Section

MOST_TOKENS = 2**16  # in a row


class TokenSettings(Section):
    """`[tokens]`: how a text or a stream of ids becomes rows, for language modeling."""

    unit: Literal["word", "character"] = Field("word", description="What counts as a token in a text.")
    window: int = Field(35, ge=1, le=MOST_TOKENS, description="Tokens predicted in a row.")
    context: int | None = Field(
        None, ge=0, le=MOST_TOKENS, description="Tokens of context before the window; default the window's length."
    )
    vocabulary: PathText | None = Field(
        None,
        description="A file with one token per line, or a .json list; default the tokens of the text in data.train.",
    )
    size: int | None = Field(
        None, ge=3, le=WIDEST, description="Keep only this many tokens of that text, the most frequent; default all."
    )
