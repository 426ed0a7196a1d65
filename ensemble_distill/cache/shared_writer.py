"""A cache that several processes write together.

Each writes its own blocks, and only the first changes the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ensemble_distill.cache.manifest import NAME, Drawn, Manifest, Pushed
from ensemble_distill.cache.parts import Block
from ensemble_distill.cache.record_key import InputKey, Key, SampleKey
from ensemble_distill.cache.writer import Writer
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.runtime.shared import is_seen, unseen, unseen_here


class SharedWriter(Writer):
    """A `Writer` in each of several processes, the first of which holds the cache's lock for all.

    Every process calls every method but `put` and `missing`, in the same order.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Raises: EdistillError if a process does not see the folder of the first one."""
        if ranks.is_first():
            super().__init__(folder, manifest)
        noted = ranks.of_first(lambda: (self.manifest, sha256_file(folder / NAME)))
        if not ranks.is_first():
            self._begin(folder, noted[0])
        if not is_seen(lambda: (folder / NAME).is_file() and sha256_file(folder / NAME) == noted[1]):
            raise unseen_here(folder, "the first one")
        ranks.wait()  # until all have seen it, before the first one writes more

    def note_pushed(self, pushed: Mapping[InputKey, Pushed]) -> None:
        self._by_first(partial(super().note_pushed, pushed))

    def note_drawn(self, drawn: Mapping[SampleKey, Drawn]) -> None:
        self._by_first(partial(super().note_drawn, drawn))

    def complete(self, cut: Sequence[Block], keys: Sequence[Key]) -> None:
        """Wait until all processes have put their blocks and the first one sees them.

        Raises:
            EdistillError: the first process does not see a block.
        """
        ranks.wait()

        def seen() -> bool:
            self._parts.forget()
            return not any(self.missing(block, keys) for block in cut)

        def wait() -> None:
            if not is_seen(seen):
                lacking = next(block for block in cut if self.missing(block, keys))
                raise unseen(f"Rows {lacking.start} to {lacking.stop - 1} of {keys[0].split}", self.folder)

        ranks.of_first(wait)

    def join(self, keys: Sequence[Key], rows: int, batch_size: int, later: Sequence[Key] = ()) -> None:
        self._by_first(partial(super().join, keys, rows, batch_size, later))

    def drop_parts(self, place: str) -> None:
        self._by_first(partial(super().drop_parts, place))

    def _by_first(self, change: Callable[[], None]) -> None:
        def changed() -> Manifest:
            change()
            return self.manifest

        self.manifest = ranks.of_first(changed)
        self._parts.forget()  # the first process may have changed parts


def open_writer(folder: Path, manifest: Manifest) -> Writer:
    """The writer of a cache, shared if there are several processes."""
    return SharedWriter(folder, manifest) if ranks.several() else Writer(folder, manifest)
