"""One pass over a split: what its records lack is made block by block, in whole batches, and survives a crash.

Each row is decoded once, and each view rendered once for all that want the same inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.parts import Block
from ensemble_distill.cache.record_key import AnyKey
from ensemble_distill.cache.writer import Writer, blocks
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.seen import Seen, loaded
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.teachers.answering import Inputs


class Maker(Protocol[AnyKey]):
    """What makes records out of rows."""

    def wants(self, keys: Sequence[AnyKey]) -> list[Inputs]:
        """The inputs that it makes these records from, in each of their views."""
        ...

    def make(self, keys: Sequence[AnyKey], rows: range, seen: Seen) -> dict[AnyKey, NDArray[np.void]]:
        """The records of a batch of rows."""
        ...


def fill(
    writer: Writer, rows: ViewedRows, todo: Sequence[AnyKey], maker: Maker[AnyKey], asking: Asking, told: str
) -> None:
    """Put every block that some of these records, of one place, still lack; they are not joined yet.

    Args:
        told: what goes on, for the progress.
    """
    cut = blocks(len(rows.source), asking.batch_size)
    missing = {block: writer.missing(block, todo) for block in cut}
    done = sum(block.stop - block.start for block, lacking in missing.items() if not lacking)
    asking.progress.start(told, total=len(rows.source), unit="rows", done=done)
    # rows that miss the same records go through one loader; only a pass resumed with other members has several
    for lacking, group in itertools.groupby(cut, key=lambda block: missing[block]):
        if lacking:
            _fill(writer, rows, lacking, list(group), maker, asking)


def _fill(
    writer: Writer,
    rows: ViewedRows,
    keys: Sequence[AnyKey],
    cut: Sequence[Block],
    maker: Maker[AnyKey],
    asking: Asking,
) -> None:
    batched = [batch for block in cut for batch in block.batches(asking.batch_size)]
    views, inputs = sorted({key.view for key in keys}), maker.wants(keys)
    stream = zip(batched, loaded(rows, batched, views, inputs, asking.workers, asking.device), strict=True)
    for block in cut:
        made: dict[AnyKey, list[NDArray[np.void]]] = {key: [] for key in keys}
        for batch, seen in itertools.islice(stream, len(block.batches(asking.batch_size))):
            for key, records in maker.make(keys, batch, seen).items():
                made[key].append(records)
            asking.progress.advance(len(batch))
        writer.put(block, {key: np.concatenate(parts) for key, parts in made.items()})
