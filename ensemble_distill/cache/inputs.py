"""Reading the inputs that a cache stores: those that members' gradients moved, which only the cache can give again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import INPUT, INPUTS, Manifest, key
from ensemble_distill.cache.reader import IN_MEMORY, mapped, refuse_other_sum
from ensemble_distill.cache.records import decode_inputs
from ensemble_distill.cache.writer import record_path
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import sha256_file


class Inputs:
    """The stored inputs of a split, memory-mapped, by row and view; a process that gets a copy maps them itself."""

    def __init__(self, paths: Mapping[int, Path], records: Mapping[int, np.dtype[np.void]], rows: int) -> None:
        self.paths, self.records, self.rows = paths, records, rows
        self._maps: dict[int, NDArray[np.void]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an input."""
        return next(iter(self.records.values()))["x"].shape

    def read(self, row: int, view: int) -> NDArray[np.float32]:
        """The input (C, H, W): pixels in [0, 1], before normalization, and tensors as members take them."""
        return decode_inputs(self.map(view)[row])

    def map(self, view: int) -> NDArray[np.void]:
        """A view's records (rows,). Raises EdistillError when the file is not one of them."""
        if view not in self._maps:
            self._maps[view] = mapped(self.paths[view], self.records[view], self.rows)
        return self._maps[view]

    def __reduce__(self) -> tuple[type[Inputs], tuple[Mapping[int, Path], Mapping[int, np.dtype[np.void]], int]]:
        return Inputs, (self.paths, self.records, self.rows)


def open_inputs(folder: Path, manifest: Manifest, split: str, views: Sequence[int]) -> Inputs | None:
    """The inputs of some views of a split; None where they are rendered, and not stored.

    As with outputs, checksums are compared where they are at most 1 GiB in all, else sizes; `edistill verify` compares
    all checksums.

    Raises:
        EdistillError: a file is missing or damaged.
    """
    if not manifest.pushed_views(split):
        return None
    place = f"{INPUTS}/{split}"
    paths = {view: record_path(folder, place, INPUT, view) for view in views}
    for view, path in paths.items():
        if key(place, INPUT, view) not in manifest.records or not path.exists():
            raise EdistillError(f"{path} is missing. Run edistill cache-logits to compute it again.")
    records = {view: manifest.record_of(place, view) for view in views}
    inputs = Inputs(paths, records, manifest.splits[split].rows)
    small = sum(path.stat().st_size for path in paths.values()) <= IN_MEMORY
    for view, path in paths.items():
        inputs.map(view)
        if small:
            refuse_other_sum(path, sha256_file(path), manifest.records[key(place, INPUT, view)])
    return inputs
