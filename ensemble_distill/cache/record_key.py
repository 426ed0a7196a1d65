"""Which record: of what a member said, of the inputs that it was shown where those are stored, or of the ids that
members were asked about where those are drawn.

Only the manifest's JSON and a part's tensor names hold keys as text; everything else passes them as they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

INPUTS = "inputs"  # stored inputs of a split stand beside its records, as a record "x" of a split "inputs/SPLIT"
SAMPLES = "samples"  # as do the ids drawn of it, in a record "ids" of a split "samples/SPLIT"
RECORDS = "records"


class _Key(ABC):
    """What all kinds of keys share."""

    split: str
    view: int

    @property
    def place(self) -> str:
        """Where its record stands, below the folder of all."""
        return self.split

    @property
    def parts_place(self) -> str:
        """Where its parts stand: those of one place are written together, whole or not at all."""
        return self.place

    @property
    @abstractmethod
    def named(self) -> str:
        """What the record is called there."""

    @property
    def column(self) -> str:
        """What a part calls it."""
        return f"{self.named}/{self.view}"

    @property
    def text(self) -> str:
        """What the manifest calls it; `key_of` reads it."""
        return f"{self.place}/{self.named}/{self.view}"

    def path(self, folder: Path) -> Path:
        """The file of its record in a cache folder."""
        return folder / RECORDS / self.place / f"{self.named}.v{self.view}.npy"


@dataclass(frozen=True, order=True)
class RecordKey(_Key):
    """What a member said of a split in a view."""

    split: str
    member: str
    view: int

    @property
    def named(self) -> str:
        return self.member


@dataclass(frozen=True, order=True)
class InputKey(_Key):
    """The stored inputs of a split in a view, of views that move them along the members' gradients."""

    split: str
    view: int

    NAMED: ClassVar[str] = "x"

    @property
    def place(self) -> str:
        return inputs_place(self.split)

    @property
    def named(self) -> str:
        return self.NAMED


def inputs_place(split: str) -> str:
    """The place of a split's stored inputs; see `_Key.place`."""
    return f"{INPUTS}/{split}"


@dataclass(frozen=True, order=True)
class SampleKey(_Key):
    """The ids drawn of a split in a view. Its parts are those of what members said of them, or the two could part."""

    split: str
    view: int

    NAMED: ClassVar[str] = "ids"

    @property
    def place(self) -> str:
        return f"{SAMPLES}/{self.split}"

    @property
    def parts_place(self) -> str:
        return self.split

    @property
    def named(self) -> str:
        return self.NAMED

    @property
    def column(self) -> str:
        return f"/{self.named}/{self.view}"  # which no member's can be


Key = RecordKey | InputKey | SampleKey
Said = RecordKey | SampleKey  # what a pass over members writes
AnyKey = TypeVar("AnyKey", RecordKey, InputKey, Said, Key)  # keys of one kind


def key_of(text: str) -> Key:
    """The key that a manifest writes so.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(.+)/([^/]+)/(0|[1-9][0-9]{0,8})", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{text!r} is not a record of its splits, members and views")
    split, named, view = match[1], match[2], int(match[3])
    if split.startswith(f"{INPUTS}/") and named == InputKey.NAMED:
        return InputKey(split.removeprefix(f"{INPUTS}/"), view)
    if split.startswith(f"{SAMPLES}/") and named == SampleKey.NAMED:
        return SampleKey(split.removeprefix(f"{SAMPLES}/"), view)
    return RecordKey(split, named, view)
