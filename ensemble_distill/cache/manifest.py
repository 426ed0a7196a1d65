"""What a cache is about: the facts that decide whether it may be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill.cache.records import input_layout, layout
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.files import read_json, write_json

FORMAT = 1
NAME = "manifest.json"
INPUTS = "inputs"  # inputs of a split are kept like a member's outputs, called INPUT, on a split called inputs/SPLIT
INPUT = "x"
FILES = (NAME, "args.toml", "records", "parts", "replay")  # all that a cache folder holds of ours


@dataclass(frozen=True)
class Split:
    """One split as it was when cached.

    Attributes:
        rows: how many.
        digest, digest_scope: of the data, and what it covers; see `data/digests.py`.
        kind: pixels, tensor or features.
        transform, seed: of its views ("none" and 0 for splits that are only evaluated).
        labels: whether it has any.
    """

    rows: int
    digest: str
    digest_scope: str
    kind: str
    transform: str = "none"
    seed: int = 0
    labels: bool = True


@dataclass(frozen=True)
class Pushed:
    """The stored inputs of one view of a split, for views that move inputs along the members' gradients.

    Attributes:
        members: name and sha256 of those that were asked for gradients, in the order that draws count them. One that
            comes later only labels what is stored: the inputs stay.
        shape: (C, H, W) of an input.
        dtype: "uint8" of inputs in [0, 1], or "float32"; see `input_layout`.
    """

    members: tuple[tuple[str, str], ...]
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Pushed:
        return cls(tuple((n, s) for n, s in record["members"]), tuple(record["shape"]), record["dtype"])


@dataclass(frozen=True)
class Manifest:
    """The file `manifest.json`. Records are keyed "split/member/view" and hold their file's sha256; regression has no
    classes."""

    task: str
    dtype: str
    classes: tuple[str, ...]
    members: tuple[Member, ...] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)
    records: Mapping[str, str] = field(default_factory=dict)
    caching: Mapping[str, Any] = field(default_factory=dict)  # batch size, dtype, device, library versions
    pushed: Mapping[str, Pushed] = field(default_factory=dict)  # keyed "split/view"; noted before the first is stored

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def record(self) -> np.dtype[np.void]:
        """How a row's outputs are stored."""
        return layout(len(self.classes), self.dtype)

    def record_of(self, split: str, view: int) -> np.dtype[np.void]:
        """How a row of a split in a view is stored: its outputs, or, of inputs/SPLIT, its input."""
        pushed = self.pushed.get(f"{split.removeprefix(f'{INPUTS}/')}/{view}")
        if not split.startswith(f"{INPUTS}/") or pushed is None:
            return self.record
        return input_layout(pushed.shape, pushed.dtype)

    @property
    def answers(self) -> Mapping[str, str]:
        """The records that hold what members said."""
        return {name: sha256 for name, sha256 in self.records.items() if not name.startswith(f"{INPUTS}/")}

    @property
    def width(self) -> int:
        """Numbers a member says of a row: K logits, or a mean and a log-variance."""
        return len(self.classes) or 2

    def views(self, split: str) -> int:
        """How many views of a split are complete for every member."""
        count = 0
        while self.members and all(key(split, name, count) in self.records for name in self.names):
            count += 1
        return count

    def holds(self, split: str) -> bool:
        """Whether any record of what members said of a split is complete."""
        return any(record.rsplit("/", 2)[0] == split for record in self.records)

    def unfinished(self, member: str) -> bool:
        """Whether a member never got as far as the others: it has no record, or lacks one that another has."""
        held: dict[str, set[tuple[str, str]]] = {name: set() for name in self.names}
        for record in self.answers:
            split, name, view = record.rsplit("/", 2)
            held.setdefault(name, set()).add((split, view))
        return not held[member] or any(other - held[member] for other in held.values())

    def without(self, member: str) -> Manifest:
        members = tuple(m for m in self.members if m.name != member)
        gone = {name for name in self.answers if name.rsplit("/", 2)[1] == member}
        records = {name: s for name, s in self.records.items() if name not in gone}
        return replace(self, members=members, records=records)

    def without_inputs(self, split: str, view: int) -> Manifest:
        pushed = {name: one for name, one in self.pushed.items() if name != f"{split}/{view}"}
        records = {name: s for name, s in self.records.items() if name != key(f"{INPUTS}/{split}", INPUT, view)}
        return replace(self, pushed=pushed, records=records)

    def pushed_views(self, split: str) -> list[int]:
        """The views of a split whose inputs are stored, or were about to be, in order."""
        return sorted(int(name.rsplit("/", 1)[1]) for name in self.pushed if name.rsplit("/", 1)[0] == split)

    def with_record(self, record: str, sha256: str) -> Manifest:
        return replace(self, records={**self.records, record: sha256})

    def save(self, folder: Path) -> None:
        record = {
            "format": FORMAT,
            "task": self.task,
            "dtype": self.dtype,
            "classes": list(self.classes),
            "members": [member.to_json() for member in self.members],
            "splits": {name: vars(split) for name, split in self.splits.items()},
            "caching": dict(self.caching),
            "records": dict(sorted(self.records.items())),  # the same bytes in whatever order they were made
        }
        if self.pushed:
            record["pushed"] = {name: vars(pushed) for name, pushed in sorted(self.pushed.items())}
        # one flipped digit of a row count would silently shift every row
        write_json(folder / NAME, {**record, "sha256": _checksum(record)})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises: EdistillError when there is none, it is damaged, or another version wrote it."""
        path = folder / NAME
        if not path.is_file():
            raise EdistillError(f"{folder} holds no cache ({NAME} is missing). Run edistill cache-logits first.")
        try:
            record = read_json(path)
            if record["format"] != FORMAT:
                raise EdistillError(
                    f"{folder} has cache format {record['format']}, and this edistill reads format {FORMAT}. "
                    "Run edistill cache-logits --overwrite."
                )
            if record.pop("sha256", None) != _checksum(record):
                raise ValueError("its checksum is that of another text")
            return cls(
                task=record["task"],
                dtype=record["dtype"],
                classes=tuple(record["classes"]),
                members=tuple(Member.from_json(member) for member in record["members"]),
                splits={name: Split(**split) for name, split in record["splits"].items()},
                records=record["records"],
                caching=record["caching"],
                pushed={name: Pushed.from_json(one) for name, one in record.get("pushed", {}).items()},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise EdistillError(
                f"{path} is damaged ({type(error).__name__}: {error}). Restore it, or run edistill cache-logits "
                "--overwrite."
            ) from None


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def key(split: str, member: str, view: int) -> str:
    return f"{split}/{member}/{view}"


def refuse_other_data(folder: Path, name: str, cached: Split, found: Split) -> None:
    """Raise EdistillError when a split's data or views are not those the cache was made from."""
    if cached.digest != found.digest:
        raise EdistillError(
            f"{folder} holds outputs for {name} data {cached.digest[:12]}… ({cached.rows} rows), but "
            f"data.{name.replace('/', '.')} is {found.digest[:12]}… ({found.rows} rows). Pass the data the cache was "
            "made from, or run edistill cache-logits --overwrite."
        )
    for what, there, here in (
        ("transform", cached.transform, found.transform),
        ("seed", cached.seed, found.seed),
    ):
        if there != here:
            raise EdistillError(
                f"{folder} was made with views.{what} = {there!r}, but the settings say {here!r}. Set views.{what} "
                f"to {there!r}, name another output.cache, or run edistill cache-logits --overwrite."
            )


def as_recorded(cached: Sequence[Member], found: Member, kinds: Collection[str]) -> Member:
    """A member as it is now. Where no split of `kinds` holds pixels, it has the preprocessing that the cache recorded,
    since it acts on nothing else."""
    there = next((member for member in cached if member.name == found.name), None)
    return found if there is None or "pixels" in kinds else replace(found, preprocessing=there.preprocessing)


def refuse_other_members(folder: Path, cached: Sequence[Member], found: Sequence[Member]) -> None:
    """Raise EdistillError when a cached member is gone or is not the one it was.

    New members among `found` are no contradiction: adding one recomputes nothing.
    """
    now = {member.name: member for member in found}
    for member in cached:
        if member.name not in now:
            raise EdistillError(
                f"{folder} holds member {member.name}, which is not among the teachers ({', '.join(now)}). Put it "
                "back, or run edistill cache-logits --overwrite."
            )
        other = now[member.name]
        for what in ("sha256", "output", "class_order", "preprocessing", "model", "units", "variance"):
            there, here = getattr(member, what), getattr(other, what)
            if there != here:
                said = "standardized" if what == "units" else what  # as the settings call it
                raise EdistillError(
                    f"{folder} holds member {member.name} with {said} {_short(there)}, but now it is {_short(here)}. "
                    "Put the old one back, or run edistill cache-logits --overwrite."
                )


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if isinstance(value, str) and len(text) == 64 else text
