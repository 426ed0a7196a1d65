"""The samples of tar shards, as WebDataset groups them: consecutive files whose names differ only in the extension."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_distill.data.folders import PICTURES
from ensemble_distill.data.tar_index import Placed, files_in
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.runtime.jsons import parse_json

EXTENSIONS = tuple(ending.removeprefix(".") for ending in PICTURES)
LARGEST_LABEL = 1 << 20  # bytes of a file that holds a label
JSON = "json"


@dataclass
class Sample:
    """Files in a shard that share a name up to the extension.

    Attributes:
        shard: the archive that they are in.
        key: the common name, with its folder and without an extension.
        files: the files by extension, in lower case.
    """

    shard: Path
    key: str
    files: dict[str, Placed] = field(default_factory=dict)

    def picture(self, column: str | None) -> Placed:
        """The sample's picture: the file with the extension `column`; for None, the one with a picture's extension.

        Raises:
            EdistillError: the sample has no picture, or several.
        """
        wanted = (column.lower(),) if column is not None else EXTENSIONS
        found = [placed for extension, placed in self.files.items() if extension in wanted]
        if len(found) != 1:
            has = "no picture" if not found else f"{len(found)} pictures"
            key = "images" if column is None else f"images = {column!r}"
            raise EdistillError(
                f"{self.shard}: sample {self.key} has {has} among {first_few(list(self.files), 8)}. Say which it is by "
                f"its extension, data.columns.{key}, or write the shards without that sample."
            )
        return found[0]

    def text(self, column: str) -> str | int | float | bool:
        """The sample's label: for "cls" the text of that file, for "json.kind" the value of that key in the JSON file.

        Raises:
            EdistillError: there is no such file or key, or the value is not a text, a number or a boolean.
        """
        extension, key = label_file(column), column.partition(".")[2]
        if extension != JSON:
            return self._read(extension).strip()
        try:
            said: Any = parse_json(self._read(JSON))
            if not isinstance(said, dict) or key not in said:
                raise ValueError(f"it has no {key!r}, and {first_few(list(said), 8) if said else 'nothing'}")
            if not isinstance(said[key], str | int | float):
                raise ValueError(f"{key} is {json.dumps(said[key])[:60]}")
        except (ValueError, TypeError) as error:
            raise EdistillError(
                f"{self.shard}: {self.key}.{JSON} does not say data.columns.labels = {column!r}: {error}. Fix it, or "
                "name another."
            ) from None
        value: str | int | float | bool = said[key]
        return value

    def _read(self, extension: str) -> str:
        placed = self.files.get(extension)
        if placed is None:
            raise EdistillError(
                f"{self.shard}: sample {self.key} has no .{extension}, and {first_few(list(self.files), 8)}. Give "
                "every sample its label, or none; rows without belong in data.transfer."
            )
        if placed.size > LARGEST_LABEL:
            raise EdistillError(f"{self.shard}: {placed.name} has {placed.size:,} bytes, and no label has. Fix it.")
        try:
            return read_at(self.shard, placed).decode()
        except UnicodeDecodeError as error:
            raise EdistillError(f"{self.shard}: {placed.name} is not UTF-8 text: {error.reason}. Fix it.") from None


def label_file(column: str) -> str:
    """The extension of the file that holds a label, as in `Sample.files`: "json" for "json.kind", "cls" for "CLS"."""
    head, dot, _ = column.lower().partition(".")
    return head if dot and head == JSON else column.lower()


def read_at(shard: Path, placed: Placed) -> bytes:
    """The bytes of one file in an archive; nothing else is read.

    Raises:
        EdistillError: the archive cannot be read, or has become shorter.
    """
    try:
        with shard.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), placed.size, placed.offset)
    except OSError as error:
        raise EdistillError(f"{shard} cannot be read: {error.strerror}. Restore it.") from None
    if len(content) < placed.size:
        raise EdistillError(f"{shard} ends within {placed.name}: it changed while it was read. Restore it.")
    return content


def samples_in(shards: Sequence[Path]) -> Iterator[Sample]:
    """The samples in their order. Files without an extension, hidden ones and those called `__…` are passed over.

    Raises:
        EdistillError: as `files_in` does; or a sample has two files of one extension, or its files are apart.
    """
    for shard in shards:
        seen: set[str] = set()
        sample: Sample | None = None
        for placed in files_in(shard):
            folder, _, name = placed.name.removeprefix("./").rpartition("/")
            stem, _, extension = name.partition(".")
            if not stem or not extension or name.startswith("__"):
                continue
            key = f"{folder}/{stem}" if folder else stem
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                if key in seen:
                    raise EdistillError(
                        f"{shard} has sample {key} in two places. Write the files of a sample one behind the other."
                    )
                seen.add(key)
                sample = Sample(shard, key)
            if extension.lower() in sample.files:
                raise EdistillError(f"{shard} has {placed.name} twice. Write the shard again.")
            sample.files[extension.lower()] = placed
        if sample is not None:
            yield sample
