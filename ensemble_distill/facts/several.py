"""Rows of several named arrays, and how they become a network's input.

On the way to a network the arrays are joined end to end into one. They are stacked, moved, stored and compared like any
other input, and code that handles inputs need not know what they are. `Several.slots` has each array's place and name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from keyword import iskeyword
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, Discriminator, Field, Tag

from ensemble_distill.facts.inputs import EXACT, RANKS, Kind, Preprocessing
from ensemble_distill.facts.texts import Tokenization, Tokenizer

WHOLE = 2**24  # arrays travel as float32, which represents every whole number up to here
# names of a graph's outputs: an input of the same name would be the same value
OUTPUTS = frozenset(
    [
        "logits",
        "head_logits",
        "mean",
        "variance",
        "head_means",
        "head_variances",
        "concentration",
        "total_uncertainty",
        "data_uncertainty",
        "model_uncertainty",
        "self",
    ]
)


def _of_what(preprocessing: Any) -> str:
    """The tag of the class to validate a record as, so that errors in a damaged one name the right class."""
    if isinstance(preprocessing, Several) or (isinstance(preprocessing, Mapping) and "parts" in preprocessing):
        return "<several>"
    record = isinstance(preprocessing, Mapping) and "tokenizer" in preprocessing
    return "<texts>" if record or isinstance(preprocessing, Tokenization) else "<pixels>"


OfOne = Annotated[
    Annotated[Preprocessing, Tag("<pixels>")] | Annotated[Tokenization, Tag("<texts>")], Discriminator(_of_what)
]


@dataclass(frozen=True)
class RowArray:
    """One of the arrays of a row in data with several arrays a row.

    Attributes:
        name: the argument by which a network takes it, unless a member's settings give another.
        kind: see `Kind`.
        shape: its shape in the first row: (H, W, C) for pixels, of which other rows share only C, and (n,) for texts,
            whose n differs from row to row.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def told(self) -> str:
        """The array in words, without what may differ from row to row."""
        if self.kind in ("pixels", "text"):
            return f"{self.name} ({self.kind})"
        return f"{self.name} ({self.kind} {' × '.join(map(str, self.shape))})"


class Slot(NamedTuple):
    """An argument of a network: its name, whether it holds whole numbers, its shape, and its start in a row."""

    name: str
    ids: bool
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """One of several arrays that a network takes.

    Attributes:
        name: its name in the data.
        called: the network's name for it; a text is taken by the names of its fields instead.
        kind: its kind in the data.
        shape: its shape as the network takes it, without the batch.
        preprocessing: how pixels or texts become that; None for other arrays.
    """

    name: str
    called: str
    kind: Kind
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    preprocessing: OfOne | None = None

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raise ValueError if kind, shape and preprocessing contradict each other."""
        to = self.preprocessing
        made = (self.shape[0], *to.size) if isinstance(to, Preprocessing) else self.shape if to is None else to.shape
        kinds = {"pixels": Preprocessing, "text": Tokenization}
        if (
            len(self.shape) != RANKS[self.kind]
            or made != self.shape
            or type(to) is not kinds.get(self.kind, type(None))
        ):
            raise ValueError(f"{self.name} is {self.kind} of shape {self.shape}, by {to}")

    @property
    def arguments(self) -> list[tuple[str, bool, tuple[int, ...]]]:
        """The network's arguments that it becomes: name, whether of whole numbers, and shape of each."""
        if isinstance(self.preprocessing, Tokenization):
            return [(field, True, (self.preprocessing.length,)) for field in self.preprocessing.fields]
        return [(self.called, self.kind == "tokens", self.shape)]


@dataclass(frozen=True)
class Several:
    """How a row of several arrays becomes a network's input: each on its own, then joined end to end, float32 (n,).

    Attributes:
        parts: the arrays in the order in which they are joined.
    """

    parts: Annotated[tuple[Part, ...], Field(min_length=1)]

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raise ValueError for names that the arguments of one network cannot have."""
        names = [slot.name for slot in self.slots]
        for name in names:
            if (why := unfit(name)) is not None:
                raise ValueError(f"an array is called {name!r}, {why}")
            if names.count(name) > 1:
                raise ValueError(f"two arrays are called {name!r}, and a network takes each by its own name")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The network's arguments."""
        found: list[Slot] = []
        for part in self.parts:
            for name, ids, shape in part.arguments:
                found.append(Slot(name, ids, shape, found[-1].stop if found else 0))
        return tuple(found)

    @property
    def shape(self) -> tuple[int]:
        """The shape of a row's input."""
        return (self.slots[-1].stop,)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the network's arguments."""
        return tuple(slot.name for slot in self.slots)

    def is_what(self, record: object) -> bool:
        """Whether a record says the same; it may be older than a field of `Preprocessing`."""
        return (
            isinstance(record, Several)
            and len(self.parts) == len(record.parts)
            and all(map(_same, self.parts, record.parts))
        )

    def to_json(self) -> dict[str, Any]:
        parts = [
            asdict(part) | {"preprocessing": part.preprocessing and part.preprocessing.to_json()} for part in self.parts
        ]
        return {"parts": parts}


def unfit(name: str) -> str | None:
    """Why no network can take an array by this name; None if one can."""
    if not name.isidentifier() or iskeyword(name):
        return "which is not a name of an argument: letters, digits and _, with no digit first"
    if name in OUTPUTS:
        return "as an output of an exported student is"
    return None


def _same(one: Part, other: Part) -> bool:
    same = one.preprocessing == other.preprocessing
    if one.preprocessing is not None:
        same = one.preprocessing.is_what(other.preprocessing)
    return same and (one.name, one.called, one.kind, one.shape) == (other.name, other.called, other.kind, other.shape)


AnyPreprocessing = Annotated[
    Annotated[Preprocessing, Tag("<pixels>")]
    | Annotated[Tokenization, Tag("<texts>")]
    | Annotated[Several, Tag("<several>")],
    Discriminator(_of_what),
]
Named = Tokenization | Several  # preprocessing of networks that take several arrays, each by its name


def named_in(preprocessing: AnyPreprocessing | None) -> Named | None:
    """The preprocessing if the network takes several arrays by their names, else None."""
    return None if isinstance(preprocessing, Preprocessing) else preprocessing


def same_rows(one: AnyPreprocessing | None, other: AnyPreprocessing | None) -> bool:
    """Whether rows become the same numbers in the same places, whatever the arguments of the networks are called."""
    return _uncalled(one) == _uncalled(other)


def _uncalled(of: AnyPreprocessing | None) -> object:
    return tuple(replace(part, called=part.name) for part in of.parts) if isinstance(of, Several) else of


def difference(one: AnyPreprocessing | None, other: AnyPreprocessing | None) -> tuple[str, str, str]:
    """The first difference between two preprocessings that are not `same_rows`: its name in words, and both values."""
    if isinstance(one, Several) and isinstance(other, Several):
        names = [", ".join(f"{part.name} ({part.kind})" for part in each.parts) for each in (one, other)]
        if names[0] != names[1]:
            return ("arrays", *names)  # type: ignore[return-value]  # of two
        for mine, theirs in zip(one.parts, other.parts, strict=True):
            if mine.preprocessing != theirs.preprocessing:
                what, *values = difference(mine.preprocessing, theirs.preprocessing)
                return f"{what} of {mine.name}", values[0], values[1]
            if mine.shape != theirs.shape:
                return f"shape of {mine.name}", str(mine.shape), str(theirs.shape)
    for kind in (Preprocessing, Tokenization):
        if isinstance(one, kind) and isinstance(other, kind):
            for name in (field.name for field in fields(kind)):
                if getattr(one, name) != getattr(other, name):
                    return name, _valued(getattr(one, name)), _valued(getattr(other, name))
    return "kind of input", _what(one), _what(other)


def _valued(value: object) -> str:
    return f"{value.sha256[:12]}…" if isinstance(value, Tokenizer) else str(value)


def _what(of: AnyPreprocessing | None) -> str:
    if of is None:
        return "one array as it is"
    return (
        "pictures" if isinstance(of, Preprocessing) else "texts" if isinstance(of, Tokenization) else "several arrays"
    )
