"""One pass over a split: missing records are made block by block, in whole batches, and survive a crash.

Each view is rendered once for all members that want the same inputs. A row is decoded once, unless a block of all its
views would not fit into memory: then some views follow after the others.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.parts import Block
from ensemble_distill.cache.record_key import AnyKey
from ensemble_distill.cache.writer import Writer
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.seen import Seen, loaded
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.ranks import Rank
from ensemble_distill.teachers.answering import Inputs

HELD_BYTES = 1 << 27  # of a block's records at most, except that one view of all members is never divided

Piece = tuple[Block, tuple[AnyKey, ...]]  # a block, and records that lack it


class Maker(Protocol[AnyKey]):
    """Makes records from rows."""

    def wants(self, keys: Sequence[AnyKey]) -> list[Inputs]:
        """The inputs from which it makes these records, in each of their views."""
        ...

    def make(self, keys: Sequence[AnyKey], rows: range, seen: Seen) -> dict[AnyKey, NDArray[np.void]]:
        """The records of one batch of rows."""
        ...


def fill(
    writer: Writer, rows: ViewedRows, todo: Sequence[AnyKey], maker: Maker[AnyKey], asking: Asking, told: str
) -> None:
    """Write every block that some of these records still lack, without joining them. All records share one place.

    Several processes write whole blocks each.

    Args:
        told: what the progress bar is called.
    """
    cut = writer.cut(todo[0], len(rows.source), asking.batch_size)
    missing = ranks.of_first(lambda: [(block, writer.missing(block, todo)) for block in cut])
    whole = [(block, lacking) for block, lacking in missing if lacking]
    total, left = len(rows.source), sum(block.stop - block.start for block, _ in whole)
    asking.progress.start(told, total=total, unit="rows", done=total - left)
    work = held(whole, lambda key: writer.manifest.format_of(key).record.itemsize)
    own = dealt(work, ranks.current()) if ranks.several() else work
    pace = _Pace(asking.progress, left, sum(block.stop - block.start for block, _ in own))
    # blocks that lack the same records share a loader; only a pass resumed with other members needs several
    for lacking, group in itertools.groupby(own, key=lambda piece: piece[1]):
        _fill(writer, rows, lacking, [block for block, _ in group], maker, asking, pace)
    writer.complete(cut, todo)


def dealt(work: Sequence[Piece[AnyKey]], rank: Rank) -> list[Piece[AnyKey]]:
    """This rank's share of the pieces.

    If there are fewer blocks than ranks, the views of a block are shared out, too. The records of one view stay
    together, since ids are drawn from all members that are asked.
    """
    pieces = list(work)
    parts = -(-rank.world // max(1, len(pieces)))
    if parts > 1:
        pieces = [piece for block, lacking in pieces for piece in _by_views(block, lacking, parts)]
    return pieces[rank.index :: rank.world]


def held(work: Sequence[Piece[AnyKey]], itemsize: Callable[[AnyKey], int]) -> list[Piece[AnyKey]]:
    """Divide blocks into pieces of as many views as `HELD_BYTES` hold.

    The first pieces of all blocks come before the second ones: pieces of the same views share a loader.

    Args:
        itemsize: bytes of one row of a record.
    """
    pieces: list[tuple[int, Piece[AnyKey]]] = []
    for block, lacking in work:
        of_view: Counter[int] = Counter()
        for key in lacking:
            of_view[key.view] += itemsize(key) * (block.stop - block.start)
        turn, filled = 0, 0
        turns: dict[int, int] = {}
        for view in sorted(of_view):
            if filled and filled + of_view[view] > HELD_BYTES:
                turn, filled = turn + 1, 0
            turns[view], filled = turn, filled + of_view[view]
        for at in range(turn + 1):
            pieces.append((at, (block, tuple(key for key in lacking if turns[key.view] == at))))
    return [piece for _, piece in sorted(pieces, key=lambda found: found[0])]


def _by_views(block: Block, lacking: Sequence[AnyKey], parts: int) -> list[Piece[AnyKey]]:
    views = sorted({key.view for key in lacking})
    found = []
    for index in range(parts):
        own = set(views[Rank(index, parts).part(len(views))])
        if own:
            found.append((block, tuple(key for key in lacking if key.view in own)))
    return found


class _Pace:
    """Scales this process's progress to that of all processes, which take about as long."""

    def __init__(self, progress: Progress, left: int, own: int) -> None:
        self.progress, self.left, self.own, self.done = progress, left, own, 0

    def advance(self, rows: int) -> None:
        before = self.left * self.done // self.own
        self.done += rows
        self.progress.advance(self.left * self.done // self.own - before)


def _fill(
    writer: Writer,
    rows: ViewedRows,
    keys: Sequence[AnyKey],
    cut: Sequence[Block],
    maker: Maker[AnyKey],
    asking: Asking,
    pace: _Pace,
) -> None:
    batched = [batch for block in cut for batch in block.batches(asking.batch_size)]
    views, inputs = sorted({key.view for key in keys}), maker.wants(keys)
    stream = zip(batched, loaded(rows, batched, views, inputs, asking.workers, asking.device), strict=True)
    for block in cut:
        made: dict[AnyKey, list[NDArray[np.void]]] = {key: [] for key in keys}
        for batch, seen in itertools.islice(stream, len(block.batches(asking.batch_size))):
            for key, records in maker.make(keys, batch, seen).items():
                made[key].append(records)
            pace.advance(len(batch))
        for together in writer.together(keys):  # frees each record once it is written
            writer.put(block, {key: np.concatenate(made.pop(key)) for key in together})
