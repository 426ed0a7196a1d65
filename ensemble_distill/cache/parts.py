"""Parts: files that hold blocks of records before these are joined. A part is read only if its bytes are intact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from ensemble_distill.cache.record_key import AnyKey, Key
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.runtime.files import refuse_endless, remove_tree, write_whole

PARTS = "parts"  # the subfolder of a cache for parts


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` − 1, a whole number of batches except at the end of the split."""

    start: int
    stop: int

    def batches(self, size: int) -> list[range]:
        return [range(i, min(i + size, self.stop)) for i in range(self.start, self.stop, size)]


class Parts:
    """The parts of one cache.

    Each is opened and hashed only once: with many columns, reading its header alone takes a while.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[Path, frozenset[str]] = {}  # columns, see `Key.column`
        self._found: dict[tuple[str, Block], dict[str, Path]] = {}
        self._open: dict[Path, Any] = {}

    def path(self, block: Block, key: Key) -> Path | None:
        """An intact part that holds a block of a record; None if there is none."""
        if (key.parts_place, block) not in self._found:
            found: dict[str, Path] = {}
            for path in self._paths(key.parts_place, block):
                for column in self._columns(path):
                    found.setdefault(column, path)
            self._found[key.parts_place, block] = found
        return self._found[key.parts_place, block].get(key.column)

    def put(self, block: Block, records: Mapping[AnyKey, NDArray[np.void]]) -> None:
        """Store a block of records of one place; on return it survives a crash."""
        (place,) = {key.parts_place for key in records}
        for key, values in records.items():
            if len(values) != block.stop - block.start:
                raise ValueError(f"{key.text}: {len(values)} records for {block}")
        tensors = {key.column: values.view(np.uint8).reshape(-1) for key, values in records.items()}
        identity = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:8]
        path = self._folder(place) / f"{block.start:010d}-{block.stop:010d}-{identity}.safetensors"
        self._open.pop(path, None)
        write_whole(path, save(tensors, metadata={"sha256": _digest(tensors)}), within=self.folder)
        self._held[path] = frozenset(tensors)
        self._found.pop((place, block), None)

    def read(self, block: Block, key: Key) -> NDArray[np.uint8]:
        """The bytes of a block of a record that has been put.

        Raises:
            EdistillError: they were removed or damaged since.
        """
        path = self.path(block, key)
        if path is None:
            raise self._lost(self._folder(key.parts_place), f"rows {block.start} to {block.stop - 1} are missing")
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="numpy")
            values: NDArray[np.uint8] = self._open[path].get_tensor(key.column)
        except Exception as error:  # safetensors' errors share no base class of their own
            raise self._lost(path, str(error)) from None
        return values

    def drop(self, place: str = "") -> None:
        """Remove the parts of one place, or all parts."""
        self.forget()  # some systems cannot remove open files
        self._held.clear()
        remove_tree(self._folder(place), within=self.folder)

    def forget(self) -> None:
        """Close all parts, and look for blocks again at the next request: other processes write here, too."""
        self._open.clear()
        self._found.clear()

    def _folder(self, place: str) -> Path:
        return self.folder / PARTS / place

    def _paths(self, place: str, block: Block) -> Iterator[Path]:
        yield from sorted(self._folder(place).glob(f"{block.start:010d}-{block.stop:010d}-*.safetensors"))

    def _columns(self, path: Path) -> frozenset[str]:
        if path not in self._held:
            self._held[path] = _columns(path)
        return self._held[path]

    def _lost(self, path: Path, reason: str) -> EdistillError:
        return CacheError(
            f"{path} was removed or changed while it was read ({reason}). Run edistill cache-logits again: it computes "
            "what is missing."
        )


def _columns(part: Path) -> frozenset[str]:
    """The columns of a part; none if its bytes are not those that were written."""
    try:
        refuse_endless(part)
        with safe_open(part, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = (file.metadata() or {}).get("sha256") == _digest(tensors)
    except Exception:  # safetensors' errors share no base class, and NumPy lacks some of its dtypes
        return frozenset()
    return frozenset(tensors if whole else ())


def _digest(tensors: Mapping[str, NDArray[np.uint8]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
