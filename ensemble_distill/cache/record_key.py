"""Keys of records: members' answers, stored inputs, and drawn ids.

Keys are text only in the manifest's JSON and in a part's tensor names; all other code passes them as objects.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

INPUTS = "inputs"  # stored inputs of SPLIT are beside its records, as a record "x" of a split "inputs/SPLIT"
SAMPLES = "samples"  # ids drawn for SPLIT are a record "ids" of a split "samples/SPLIT"
RECORDS = "records"


class _Key(ABC):
    """What all kinds of keys share."""

    split: str
    view: int

    @property
    def place(self) -> str:
        """The folder of its record, below that of all records."""
        return self.split

    @property
    def parts_place(self) -> str:
        """The folder of its parts. Records of one place are written together, all or none."""
        return self.place

    @property
    @abstractmethod
    def named(self) -> str:
        """The record's name in its place."""

    @property
    def column(self) -> str:
        """The record's name in a part."""
        return f"{self.named}/{self.view}"

    @property
    def text(self) -> str:
        """The record's name in the manifest, which `key_of` reads."""
        return f"{self.place}/{self.named}/{self.view}"

    def path(self, folder: Path) -> Path:
        """The file of its record in a cache folder."""
        return folder / RECORDS / self.place / f"{self.named}.v{self.view}.npy"


@dataclass(frozen=True, order=True)
class RecordKey(_Key):
    """A member's answers for a split in a view."""

    split: str
    member: str
    view: int

    @property
    def named(self) -> str:
        return self.member


@dataclass(frozen=True, order=True)
class InputKey(_Key):
    """The stored inputs of a split in a view that moves them along the members' gradients."""

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
    """The ids drawn for a split in a view.

    They share parts with the members' answers at them, so that both are kept or lost.
    """

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
        return f"/{self.named}/{self.view}"  # no member's column begins with a slash


Key = RecordKey | InputKey | SampleKey
Said = RecordKey | SampleKey  # records that a pass over members writes
AnyKey = TypeVar("AnyKey", RecordKey, InputKey, Said, Key)  # keys of one kind


def key_of(text: str) -> Key:
    """The key with this text in a manifest.

    Raises:
        ValueError: there is no such key.
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
