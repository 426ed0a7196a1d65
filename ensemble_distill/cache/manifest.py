"""The facts about a cache that decide whether it may be read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from ensemble_distill.cache.formats import Format
from ensemble_distill.cache.parts import PARTS
from ensemble_distill.cache.problems import problems
from ensemble_distill.cache.record_key import INPUTS, RECORDS, SAMPLES, InputKey, Key, RecordKey, SampleKey, key_of
from ensemble_distill.errors import CacheError, quoted
from ensemble_distill.facts import FACETS, Member, Split, split_key
from ensemble_distill.runtime.contents import gathered, scattered
from ensemble_distill.runtime.jsons import read_json, write_json
from ensemble_distill.runtime.records import GIVEN, parsed
from ensemble_distill.tasks import Task, task_from_json

FORMAT = 1
PARTIAL = 2  # format of a cache with unanswered rows, which earlier versions would take for numbers
DRAWN = 3  # format of a cache with drawn ids, which earlier versions would take for dense records
NAME = "manifest.json"
ARGS = "args.toml"  # the settings that the cache was made with
FOLDERS = (RECORDS, PARTS, "replay", "decoded")
FILES = (NAME, ARGS, *FOLDERS)  # deleted when a cache is made again; notes stay, since they depend on the data only


@dataclass(frozen=True)
class Pushed:
    """The stored inputs of one view of a split, for views that move inputs along the members' gradients.

    Attributes:
        members: name and sha256 of the members asked for gradients, in the order that the draws count. A member added
            later only labels the stored inputs.
        shape: (C, H, W) of an input.
        dtype: "uint8" for inputs in [0, 1], or "float32"; see `cache/formats/inputs.py`.
    """

    members: Annotated[tuple[tuple[str, str], ...], Field(min_length=1)]
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    dtype: Literal["uint8", "float32"]

    @property
    def format(self) -> Format:
        """How an input is stored."""
        return Format("inputs", tuple(self.shape), self.dtype)


@dataclass(frozen=True)
class Drawn:
    """The ids drawn for one view of a split, for records that hold no other classes.

    Attributes:
        members: name and sha256 of the members whose mean the ids were drawn from. A member added later answers at the
            existing ids.
        samples: n, the number of ids per position.
    """

    members: Annotated[tuple[tuple[str, str], ...], Field(min_length=1)]
    samples: Annotated[int, Field(ge=2, le=2**16)]


def _drawn_key(text: str) -> SampleKey:
    """The key of a "split/view" in `drawn`."""
    key = key_of(f"{SAMPLES}/{text.rpartition('/')[0]}/{SampleKey.NAMED}/{text.rpartition('/')[2]}")
    assert isinstance(key, SampleKey)
    return key


def _pushed_key(text: str) -> InputKey:
    """The key of a "split/view" in `pushed`."""
    key = key_of(f"{INPUTS}/{text.rpartition('/')[0]}/{InputKey.NAMED}/{text.rpartition('/')[2]}")
    assert isinstance(key, InputKey)
    return key


@dataclass(frozen=True)
class Manifest:
    """The file `manifest.json`: the task, who answers which rows, and the sha256 of each record's file.

    A loaded file is validated against the types here.
    """

    answer: Annotated[Task | type[Task], GIVEN]  # a type until members have been asked
    dtype: Annotated[str, Field(pattern="^(float16|float32)$")]
    members: tuple[Member, ...] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)
    records: Mapping[Annotated[Key, PlainValidator(key_of)], str] = field(default_factory=dict)
    caching: Mapping[str, Any] = field(default_factory=dict)  # batch size, dtype, device, library versions
    # number of rows that the member of a record leaves unanswered, if any
    unanswered: Mapping[Annotated[RecordKey, PlainValidator(key_of)], Annotated[int, Field(ge=1)]] = field(
        default_factory=dict
    )
    # how inputs are made; noted before the first one is stored
    pushed: Mapping[Annotated[InputKey, PlainValidator(_pushed_key)], Pushed] = field(default_factory=dict)
    # how ids are drawn; noted before the first one is stored
    drawn: Mapping[Annotated[SampleKey, PlainValidator(_drawn_key)], Drawn] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def task(self) -> str:
        return self.answer.key

    @property
    def settled(self) -> Task:
        """The task, once members have been asked."""
        assert isinstance(self.answer, Task)
        return self.answer

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; empty if the task has none, or before members have been asked."""
        return self.answer.names if isinstance(self.answer, Task) else ()

    @property
    def format(self) -> Format:
        """How a member's whole answer for a row is stored."""
        return Format(self.settled.format, self.settled.shape, self.dtype)

    def format_of(self, key: Key) -> Format:
        """How a row of a record is stored."""
        if isinstance(key, InputKey):
            return self.pushed[key].format
        drawn = self.drawn.get(SampleKey(key.split, key.view))
        if drawn is None:
            return self.format
        *positions, classes = self.settled.shape
        if isinstance(key, SampleKey):
            return Format("drawn", (*positions, 2 * drawn.samples + 1), "uint16" if classes <= 2**16 else "uint32")
        return Format("sampled", (*positions, drawn.samples + 1), self.dtype)

    def is_sampled(self, split: str) -> bool:
        """Whether the members' answers for a split are stored at drawn ids only."""
        return any(key.split == split for key in self.drawn)

    @property
    def answers(self) -> Mapping[RecordKey, str]:
        """The records that hold members' answers."""
        return {key: sha256 for key, sha256 in self.records.items() if isinstance(key, RecordKey)}

    def views(self, split: str) -> int:
        """How many views of a split are complete for every member."""
        count = 0
        while self.members and all(RecordKey(split, name, count) in self.records for name in self.names):
            count += 1
        return count

    def answered(self, split: str) -> float:
        """The share of the rows of a split that members answer, mean over its records."""
        keys = [key for key in self.answers if key.split == split]
        lacking = sum(self.unanswered.get(key, 0) for key in keys)
        return 1 - lacking / (len(keys) * self.splits[split].rows) if keys else 1.0

    def holds(self, split: str) -> bool:
        """Whether any record of members' answers for a split is complete."""
        return any(key.split == split for key in self.answers)

    def unfinished(self, member: str) -> bool:
        """Whether a member never got as far as the others: it has no record, or lacks one that another member has."""
        held: dict[str, set[tuple[str, int]]] = {name: set() for name in self.names}
        for key in self.answers:
            held.setdefault(key.member, set()).add((key.split, key.view))
        return not held[member] or any(other - held[member] for other in held.values())

    def without(self, *others: str) -> Manifest:
        """The manifest as if these members had never been asked for an answer."""
        members = tuple(m for m in self.members if m.name not in others)
        gone = {key for key in self.answers if key.member in others}
        return replace(
            self,
            members=members,
            records={key: s for key, s in self.records.items() if key not in gone},
            unanswered={key: rows for key, rows in self.unanswered.items() if key not in gone},
        )

    def without_inputs(self, gone: InputKey) -> Manifest:
        """The manifest as if the inputs of a view had never been stored."""
        pushed = {key: one for key, one in self.pushed.items() if key != gone}
        return replace(self, pushed=pushed, records={key: s for key, s in self.records.items() if key != gone})

    def without_drawn(self, gone: SampleKey) -> Manifest:
        """The manifest as if no ids had been drawn for a view."""
        drawn = {key: one for key, one in self.drawn.items() if key != gone}
        return replace(self, drawn=drawn, records={key: s for key, s in self.records.items() if key != gone})

    def pushed_views(self, split: str) -> list[InputKey]:
        """The views of a split whose inputs are stored, or about to be, in order."""
        return sorted(key for key in self.pushed if key.split == split)

    def with_records(self, records: Mapping[Key, str], unanswered: Mapping[RecordKey, int] | None = None) -> Manifest:
        """The manifest with new or replaced records.

        Args:
            records: sha256 by key.
            unanswered: number of rows that each record leaves unanswered.
        """
        kept = {key: rows for key, rows in self.unanswered.items() if key not in records}
        lacking = {key: rows for key, rows in (unanswered or {}).items() if rows}
        return replace(self, records={**self.records, **records}, unanswered={**kept, **lacking})

    def save(self, folder: Path) -> None:
        answer = self.settled.to_json()
        record = {
            "format": self.format_number,
            "task": answer.pop("task"),
            "dtype": self.dtype,
            **answer,
            "members": [member.to_json() for member in self.members],
            "splits": {name: vars(split) for name, split in self.splits.items()},
            "caching": dict(self.caching),
            # sorted, so that the bytes do not depend on the order in which records were made
            "records": dict(sorted((key.text, sha256) for key, sha256 in self.records.items())),
        }
        if self.pushed:
            record["pushed"] = self.told_pushed()
        if self.drawn:
            record["drawn"] = self.told_drawn()
        if self.unanswered:
            record["unanswered"] = dict(sorted((key.text, rows) for key, rows in self.unanswered.items()))
        record = gathered(record)
        # one flipped digit of a row count would silently shift every row
        write_json(folder / NAME, {**record, "sha256": _checksum(record)}, within=folder)

    @property
    def format_number(self) -> int:
        """The file's format: the oldest one in which earlier versions would not misread anything."""
        if self.drawn:
            return DRAWN
        return PARTIAL if self.unanswered else FORMAT

    def told_pushed(self) -> dict[str, dict[str, Any]]:
        """How inputs are made, by "split/view", for the file and `inspect`."""
        told = {f"{key.split}/{key.view}": vars(pushed) for key, pushed in self.pushed.items()}
        return dict(sorted(told.items()))

    def told_drawn(self) -> dict[str, dict[str, Any]]:
        """How ids are drawn, by "split/view", for the file and `inspect`."""
        told = {f"{key.split}/{key.view}": vars(drawn) for key, drawn in self.drawn.items()}
        return dict(sorted(told.items()))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises: EdistillError if there is no manifest, it is unreadable or damaged, or an unknown version wrote
        it."""
        path = folder / NAME
        if not is_cache(folder):
            raise CacheError(f"{folder} holds no cache ({NAME} is missing). Run edistill cache-logits first.")
        try:
            record = read_json(path)
            if not isinstance(record, dict) or not isinstance(record.get("format"), int):
                raise ValueError("it has no format")
            if (written := record.pop("format")) not in (FORMAT, PARTIAL, DRAWN):
                raise CacheError(
                    f"{folder} has cache format {written}, and this edistill reads formats {FORMAT} to {DRAWN}. Run "
                    "edistill cache-logits --overwrite."
                )
            if record.pop("sha256", None) != _checksum({"format": written, **record}):
                raise ValueError("its checksum is that of another text")
            return _parsed(record)
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, RecursionError) as error:
            reason = quoted(error)
        raise CacheError(
            f"{path} is damaged ({reason}). Restore it, or run edistill cache-logits --overwrite."
        ) from None


def bytes_of_records(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / RECORDS).rglob("*.npy"))


def is_cache(folder: Path) -> bool:
    """Whether a folder is a cache, even if its manifest cannot be read."""
    return os.path.lexists(folder / NAME)


def _parsed(record: Mapping[str, Any]) -> Manifest:
    """The manifest in a JSON document.

    Raises:
        ValueError: there is none, or one that could make somebody write outside the cache.
    """
    answer = task_from_json(record)
    # class names may come from folder names, which need not be Unicode; a record's texts are
    manifest = parsed(Manifest, {**scattered(record), "classes": None}, answer=answer)
    answer.refuse_others(manifest.members)
    for problem in problems(manifest):
        raise ValueError(problem)
    return manifest


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def refuse_other_data(folder: Path, name: str, cached: Split, found: Split) -> None:
    """Raise EdistillError if a split's data or views are not those that the cache was made from."""
    if cached.digest != found.digest:
        raise CacheError(
            f"{folder} holds outputs for {name} data {cached.digest[:12]}… ({cached.rows} rows), but "
            f"{split_key(name)} is {found.digest[:12]}… ({found.rows} rows). Pass the data the cache was "
            "made from, or run edistill cache-logits --overwrite."
        )
    for what, there, here in (
        ("transform", cached.transform, found.transform),
        ("seed", cached.seed, found.seed),
    ):
        if there != here:
            raise CacheError(
                f"{folder} was made with views.{what} = {there!r}, but the settings say {here!r}. Set views.{what} "
                f"to {there!r}, name another output.cache, or run edistill cache-logits --overwrite."
            )


def as_recorded(cached: Sequence[Member], found: Member, kinds: Collection[str]) -> Member:
    """A member as it is now, with the preprocessing that the cache recorded if that makes no difference.

    It makes none if it says the same in the words of an older version, or if no split of `kinds` has pixels, texts or
    several arrays.
    """
    there = next((member for member in cached if member.name == found.name), None)
    if there is None:
        return found
    same = found.preprocessing is not None and found.preprocessing.is_what(there.preprocessing)
    acts = {"pixels", "text", "several"} & set(kinds)
    return replace(found, preprocessing=there.preprocessing) if same or not acts else found


def refuse_other_members(folder: Path, cached: Sequence[Member], found: Sequence[Member]) -> None:
    """Raise EdistillError if a cached member is missing or has changed.

    New members among `found` are no contradiction: adding one recomputes nothing.
    """
    now = {member.name: member for member in found}
    for member in cached:
        if member.name not in now:
            raise CacheError(
                f"{folder} holds member {member.name}, which is not among the teachers ({', '.join(now)}). Put it "
                "back, or run edistill cache-logits --overwrite."
            )
        other = now[member.name]
        for what in FACETS:
            there, here = getattr(member, what), getattr(other, what)
            if there != here:
                said = "standardized" if what == "units" else what  # as the settings call it
                raise CacheError(
                    f"{folder} holds member {member.name} with {said} {abbreviated(there)}, but now it is "
                    f"{abbreviated(here)}. Put the old one back, or run edistill cache-logits --overwrite."
                )


def abbreviated(value: object) -> str:
    """A value for a message: the first twelve characters of a digest, anything else in full."""
    text = str(value)
    return f"{text[:12]}…" if isinstance(value, str) and len(text) == 64 else text
