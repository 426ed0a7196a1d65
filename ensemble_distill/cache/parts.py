"""The blocks of records that are not joined yet. Each is a file, a part, that is read only if its bytes are whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import remove_tree, write_whole

PARTS = "parts"  # the folder of a cache that holds them

Column = tuple[str, int]  # a member's name and a view


@dataclass(frozen=True)
class Block:
    """Rows start to stop − 1, a whole number of batches (but for the split's end)."""

    start: int
    stop: int

    def batches(self, size: int) -> list[range]:
        return [range(i, min(i + size, self.stop)) for i in range(self.start, self.stop, size)]


class Parts:
    """The parts of one cache. Each is opened, and hashed, once: with many columns its header alone takes a while."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[Path, frozenset[Column]] = {}
        self._found: dict[tuple[str, Block], dict[Column, Path]] = {}
        self._open: dict[Path, Any] = {}

    def holding(self, split: str, block: Block) -> Mapping[Column, Path]:
        """The columns of a block that whole parts hold, and one part for each."""
        if (split, block) not in self._found:
            pairs = ((column, path) for path in self._paths(split, block) for column in self._columns(path))
            self._found[split, block] = {}
            for column, path in pairs:
                self._found[split, block].setdefault(column, path)
        return self._found[split, block]

    def put(self, split: str, block: Block, records: Mapping[Column, NDArray[np.void]]) -> None:
        """Store a block's records; on return they survive a crash."""
        for (member, view), values in records.items():
            if len(values) != block.stop - block.start:
                raise ValueError(f"{member} view {view}: {len(values)} records for {block}")
        tensors = {f"{m}/{v}": values.view(np.uint8).reshape(-1) for (m, v), values in records.items()}
        identity = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:8]
        path = self._folder(split) / f"{block.start:010d}-{block.stop:010d}-{identity}.safetensors"
        self._open.pop(path, None)
        write_whole(path, save(tensors, metadata={"sha256": _digest(tensors)}), within=self.folder)
        self._held[path] = frozenset(records)
        self._found.pop((split, block), None)

    def read(self, split: str, block: Block, column: Column) -> NDArray[np.uint8]:
        """The bytes of a column's records, which have been put.

        Raises:
            EdistillError: they were removed, or damaged, since.
        """
        path = self.holding(split, block).get(column)
        if path is None:
            raise self._lost(self._folder(split), f"rows {block.start} to {block.stop - 1} are missing")
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="numpy")
            values: NDArray[np.uint8] = self._open[path].get_tensor(f"{column[0]}/{column[1]}")
        except Exception as error:  # safetensors' errors share no base class of their own
            raise self._lost(path, str(error)) from None
        return values

    def drop(self, split: str = "") -> None:
        """Remove the parts of a split, or all."""
        self._open.clear()  # open files cannot be removed everywhere
        self._held.clear()
        self._found.clear()
        remove_tree(self._folder(split), within=self.folder)

    def _folder(self, split: str) -> Path:
        return self.folder / PARTS / split

    def _paths(self, split: str, block: Block) -> Iterator[Path]:
        yield from sorted(self._folder(split).glob(f"{block.start:010d}-{block.stop:010d}-*.safetensors"))

    def _columns(self, path: Path) -> frozenset[Column]:
        if path not in self._held:
            self._held[path] = _columns(path)
        return self._held[path]

    def _lost(self, path: Path, reason: str) -> EdistillError:
        return EdistillError(
            f"{path} was removed or changed while it was read ({reason}). Run edistill cache-logits again: it computes "
            "what is missing."
        )


def _columns(part: Path) -> frozenset[Column]:
    """What a part holds; nothing when its bytes are not those that were written."""
    try:
        with safe_open(part, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = (file.metadata() or {}).get("sha256") == _digest(tensors)
    except Exception:  # safetensors' errors share no base class, and NumPy has not all of its dtypes
        return frozenset()
    named = (re.fullmatch(r"(.*)/(\d{1,9})", name, re.DOTALL) for name in tensors if whole)
    return frozenset((match[1], int(match[2])) for match in named if match)


def _digest(tensors: Mapping[str, NDArray[np.uint8]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
