"""The table `[tokens]` of `edistill.toml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ensemble_distill.settings.paths import PathText
from ensemble_distill.settings.section import WIDEST, Section

MOST_TOKENS = 2**16  # of a row


class TokenSettings(Section):
    """`[tokens]`: how a text, or a stream of ids, becomes rows; for language-modelling."""

    unit: Literal["word", "character"] = Field("word", description="What a token of a text is.")
    window: int = Field(35, ge=1, le=MOST_TOKENS, description="Tokens of a row that are predicted.")
    context: int | None = Field(
        None, ge=0, le=MOST_TOKENS, description="Tokens before them that a network is shown too; default as many."
    )
    vocabulary: PathText | None = Field(
        None, description="A file of all tokens, one a line, or a .json list; default those of the text in data.train."
    )
    size: int | None = Field(
        None, ge=3, le=WIDEST, description="How many tokens of that text are known, the most frequent; default all."
    )
