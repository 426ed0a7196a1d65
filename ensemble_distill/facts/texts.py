"""How texts become a network's input."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from ensemble_distill.facts.inputs import EXACT

FIELDS = ("input_ids", "attention_mask", "token_type_ids")  # what a tokenizer makes of a text, as networks name it
LONGEST = 2**16  # tokens that a text is cut to at most


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library, equal to another of the same text.

    Attributes:
        sha256: of the text.
        content: a `tokenizer.json`; None where a record only names it.
    """

    sha256: str
    content: str | None = field(default=None, compare=False, repr=False)

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raises ValueError where the text is another."""
        if self.content is not None and (found := _sha256(self.content)) != self.sha256:
            raise ValueError(f"a tokenizer is {found[:12]}…, and is to be {self.sha256[:12]}…")

    @classmethod
    def of(cls, content: str) -> Tokenizer:
        return cls(_sha256(content), content)


@dataclass(frozen=True)
class Tokenization:
    """How a text becomes a network's input: as many rows of whole numbers as there are fields, of equal length.

    Attributes:
        tokenizer: cuts it into tokens, and adds those that a network wants before and after.
        length: L; a longer text is cut, a shorter one padded behind.
        fields: some of `FIELDS`, in the order in which the rows stand.
        pad: the id of what is padded with, which the attention mask leaves out.
    """

    tokenizer: Tokenizer
    length: Annotated[int, Field(ge=1, le=LONGEST)]
    fields: Annotated[tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...], Field(min_length=1)]
    pad: Annotated[int, Field(ge=0)] = 0

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raises ValueError for fields of which one stands twice."""
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields are {list(self.fields)}: name each once")

    def is_what(self, record: object) -> bool:
        """Whether it is what a record says."""
        return self == record

    @property
    def shape(self) -> tuple[int, int]:
        """Of a row's input."""
        return len(self.fields), self.length

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
