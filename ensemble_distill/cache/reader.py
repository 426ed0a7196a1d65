"""Reading a cache: members' outputs for any rows of any view, and stored inputs, once they are known to be intact."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.formats import Format
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import InputKey
from ensemble_distill.cache.records import VERIFIED, Records, mapped, problem_of, refuse_other_sum
from ensemble_distill.cache.sampled_records import SampledRecords
from ensemble_distill.errors import CacheError, EdistillError, first_few, meant
from ensemble_distill.runtime.files import sha256_file


class Cache:
    """The finished records of a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises: EdistillError if there is no cache in `folder`, or its manifest is damaged."""
        self.folder = folder
        self.manifest = Manifest.load(folder)

    def only(self, member: str) -> Cache:
        """The same cache, as if it held one member alone.

        Raises:
            EdistillError: it does not hold this member.
        """
        refuse_unknown(member, self.manifest.names, str(self.folder))
        alone = copy.copy(self)
        alone.manifest = self.manifest.without(*(other for other in self.manifest.names if other != member))
        return alone

    def views(self, split: str) -> int:
        """The number of complete views of a split; 0 if it is not cached.

        Raises:
            EdistillError: the pass over this split was interrupted before any view was complete.
        """
        count = self.manifest.views(split)
        if split in self.manifest.splits and count == 0:
            raise CacheError(
                f"{self.folder} is unfinished: {split} has no view of every member yet. Run edistill cache-logits "
                "to finish it."
            )
        return count

    def open(self, split: str, views: int = 1) -> Records:
        """The records of a split's first `views` views.

        Raises:
            EdistillError: the split or that many views are not cached, or a record is damaged.
        """
        there = self.views(split)
        if there < views:
            known = ", ".join(self.manifest.splits) or "nothing"
            raise CacheError(
                f"{self.folder} holds {there} views of {split}, and {views} are asked for (it has {known}). "
                "Run edistill cache-logits."
            )
        if self.manifest.is_sampled(split):
            return SampledRecords(self.folder, self.manifest, split, views)
        return Records(self.folder, self.manifest, split, views)

    def verify(self) -> list[str]:
        """Recompute every checksum. Returns one sentence per damaged record; empty if all are intact."""
        problems = []
        for key, sha256 in self.manifest.records.items():
            path, rows = key.path(self.folder), self.manifest.splits[key.split].rows
            problem = problem_of(path, self.manifest.format_of(key).record, rows, sha256)
            problems += [] if problem is None else [problem]
        return problems


class StoredInputs:
    """The stored inputs of a split, memory-mapped, by row and view.

    A process that receives a copy maps the files itself.
    """

    def __init__(self, paths: Mapping[int, Path], formats: Mapping[int, Format], rows: int) -> None:
        self.paths, self.formats, self.rows = paths, formats, rows
        self._maps: dict[int, NDArray[np.void]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an input."""
        return next(iter(self.formats.values())).shape

    def read(self, row: int, view: int) -> NDArray[np.float32]:
        """The input (C, H, W): pixels in [0, 1] before normalization, or tensors as members take them."""
        return self.formats[view].decode(self.map(view)[row])

    def map(self, view: int) -> NDArray[np.void]:
        """A view's records (rows,). Raises EdistillError if the file does not hold such records."""
        if view not in self._maps:
            self._maps[view] = mapped(self.paths[view], self.formats[view].record, self.rows)
        return self._maps[view]

    def __reduce__(self) -> tuple[type[StoredInputs], tuple[Mapping[int, Path], Mapping[int, Format], int]]:
        return StoredInputs, (self.paths, self.formats, self.rows)


def stored_inputs(folder: Path, manifest: Manifest, split: str, views: Sequence[int]) -> StoredInputs | None:
    """The stored inputs of some views of a split; None if inputs are rendered and not stored.

    As for outputs, checksums are compared if the files have at most 1 GiB in all, else only sizes; `edistill verify`
    compares all checksums.

    Raises:
        EdistillError: a file is missing or damaged.
    """
    if not manifest.pushed_views(split):
        return None
    keys = [InputKey(split, view) for view in views]
    paths = {key.view: key.path(folder) for key in keys}
    for key in keys:
        if key not in manifest.records or not paths[key.view].exists():
            raise CacheError(f"{paths[key.view]} is missing. Run edistill cache-logits to compute it again.")
    inputs = StoredInputs(paths, {key.view: manifest.format_of(key) for key in keys}, manifest.splits[split].rows)
    small = sum(path.stat().st_size for path in paths.values()) <= VERIFIED
    for key in keys:
        inputs.map(key.view)
        if small:
            refuse_other_sum(paths[key.view], sha256_file(paths[key.view]), manifest.records[key])
    return inputs


def refuse_unknown(member: str, names: Sequence[str], where: str) -> None:
    """Raise EdistillError if `train.teacher` names no member of a cache or a folder.

    Args:
        where: what messages call the cache or the folder.
    """
    if member not in names:
        near = f"{told} " if (told := meant(member, names, "")) else ""
        raise EdistillError(
            f"train.teacher is {member!r}, and {where} holds {first_few(names, 12)}. {near}Name one of these, or leave "
            "it out to learn from all."
        )
