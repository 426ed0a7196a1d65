"""Which record: of what a member said, or of the inputs that it was shown where those are stored.

Only the manifest's JSON and a part's tensor names hold keys as text; everything else passes them as they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

INPUTS = "inputs"  # stored inputs of a split stand beside its records, as a record "x" of a split "inputs/SPLIT"
RECORDS = "records"


class _Key(ABC):
    """What both kinds of keys share."""

    split: str
    view: int

    @property
    def place(self) -> str:
        """Where its record and its parts stand, below the folder of each."""
        return self.split

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
        return f"{self.place}/{self.column}"

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


Key = RecordKey | InputKey
AnyKey = TypeVar("AnyKey", RecordKey, InputKey, RecordKey | InputKey)  # keys of one kind


def key_of(text: str) -> Key:
    """The key that a manifest writes so.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(.+)/([^/]+)/(0|[1-9][0-9]{0,8})", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{text!r} is no record of its splits, members and views")
    split, named, view = match[1], match[2], int(match[3])
    if split.startswith(f"{INPUTS}/") and named == InputKey.NAMED:
        return InputKey(split.removeprefix(f"{INPUTS}/"), view)
    return RecordKey(split, named, view)
