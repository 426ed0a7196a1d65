"""How texts become a network's input."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from ensemble_distill.facts.inputs import EXACT

FIELDS = ("input_ids", "attention_mask", "token_type_ids")  # a tokenizer's outputs, as networks name them
LONGEST = 2**16  # greatest `length` of a tokenization


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library; tokenizers with the same content are equal.

    Attributes:
        sha256: of the content.
        content: its `tokenizer.json`; None in a record that only names it.
    """

    sha256: str
    content: str | None = field(default=None, compare=False, repr=False)

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raise ValueError if the content has another sha256."""
        if self.content is not None and (found := _sha256(self.content)) != self.sha256:
            raise ValueError(f"a tokenizer is {found[:12]}…, and is to be {self.sha256[:12]}…")

    @classmethod
    def of(cls, content: str) -> Tokenizer:
        return cls(_sha256(content), content)


@dataclass(frozen=True)
class Tokenization:
    """How a text becomes a network's input: a row of L whole numbers for each field.

    Attributes:
        tokenizer: cuts the text into tokens and adds special tokens.
        length: L; a longer text is cut, a shorter one padded at its end.
        fields: some of `FIELDS`, in the order of the rows.
        pad: the id of the padding, which the attention mask leaves out.
    """

    tokenizer: Tokenizer
    length: Annotated[int, Field(ge=1, le=LONGEST)]
    fields: Annotated[tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...], Field(min_length=1)]
    pad: Annotated[int, Field(ge=0)] = 0

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raise ValueError if a field is given twice."""
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields are {list(self.fields)}: name each once")

    def is_what(self, record: object) -> bool:
        """Whether a record says the same."""
        return self == record

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a row's input."""
        return len(self.fields), self.length

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
