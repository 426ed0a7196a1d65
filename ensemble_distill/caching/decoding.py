"""Decoding the images of each split once, into the cache, before members are asked about them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ensemble_distill.caching.panel import Asking
from ensemble_distill.data.decoded import Decoded, decodes, open_pictures
from ensemble_distill.data.decoded_blocks import RECORD, Blocks, cut, is_stored, refuse_other_pictures
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.source import Array, Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import HELD_OUT
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.disk import free_bytes
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.shared import is_seen, unseen, unseen_here
from ensemble_distill.runtime.spread import spread
from ensemble_distill.runtime.words import bytes_told, counted
from ensemble_distill.runtime.workers import at_once, by_trial, offered, rate_of

AT_ONCE = 64  # images per batch of a loader process,
BYTES = 2**24  # or fewer, to keep a batch near this size
ESTIMATED = 32  # images whose sizes stand for all
TIMED = 8  # images whose decoding time stands for all
CPU = torch.device("cpu")  # decoded images go to disk, on whatever device the members compute


def to_store(splits: Mapping[str, SplitPlan]) -> dict[str, Source]:
    """The splits whose images are decoded on reading.

    Held-out rows of folds are left out, since they are those of train.
    """
    return {name: plan.source for name, plan in splits.items() if name != HELD_OUT and decodes(plan.source)}


def all_stored(folder: Path, splits: Mapping[str, SplitPlan]) -> bool:
    """Whether nothing is left to decode. Raises EdistillError if a record is damaged."""
    return all(is_stored(folder, name) for name in to_store(splits))


def bytes_to_store(folder: Path, splits: Mapping[str, SplitPlan], overwrite: bool) -> dict[str, int]:
    """Estimated bytes of the images to store, by split; splits that are already stored are left out.

    Raises:
        EdistillError: images of other data are stored, or their record is damaged.
    """
    found = {}
    for name, source in to_store(splits).items():
        if not overwrite:
            refuse_other_pictures(folder, name, len(source), source.digest)
        if overwrite or not is_stored(folder, name):
            found[name] = _bytes_of(source)
    return found


def _bytes_of(source: Source) -> int:
    """Estimated bytes of all images; exact if all have one size."""
    some = _sizes(source)
    return sum(some) * len(source) // len(some)


def _sizes(source: Source) -> list[int]:
    """Bytes of some evenly spaced images, since the first one may be unlike the others."""
    return [source.item(row).x.nbytes for row in spread(len(source), ESTIMATED)]


def refuse_no_room_to_store(folder: Path, lacking: Mapping[str, int], records: int) -> None:
    """Raise EdistillError if the disk lacks room for the images beside the records."""
    free, needed = free_bytes(folder), sum(lacking.values())
    if lacking and needed + records > free:
        raise EdistillError(
            f"Decoded pictures of {' and '.join(lacking)} fill about {bytes_told(needed)}, records "
            f"{bytes_told(records)}, and the disk of {folder} has {bytes_told(free)} left. Leave cache.decoded out, "
            "name another output.cache, or make room."
        )


def tell_to_store(folder: Path, lacking: Mapping[str, int], splits: Mapping[str, SplitPlan], asking: Asking) -> None:
    """Report what will be decoded and how much it will fill, before it begins."""
    if lacking:
        rows = sum(len(splits[name].source) for name in lacking)
        asking.progress.note(
            f"decoded pictures of {' and '.join(lacking)}: {counted(rows, 'row')}, about "
            f"{bytes_told(sum(lacking.values()))} to write, {bytes_told(free_bytes(folder))} free."
        )


def store_pictures(folder: Path, splits: Mapping[str, SplitPlan], asking: Asking) -> tuple[dict[str, SplitPlan], int]:
    """Decode what is not stored yet, and let all splits read the stored images.

    Several processes decode whole blocks each. Every rank has to call it.

    Returns:
        The splits, with sources that read the stored images, and the number of splits that had something to decode.
    """
    found, added = dict(splits), 0
    for name, source in to_store(splits).items():
        if not ranks.of_first(lambda name=name: is_stored(folder, name)):  # type: ignore[misc]
            _store(folder, name, source, asking)
            added += 1
        pictures = open_pictures(folder, name, len(source), source.digest)
        for reader in (name, HELD_OUT) if name == "train" and HELD_OUT in splits else (name,):
            found[reader] = replace(splits[reader], source=Decoded(splits[reader].source, pictures))
    return found, added


def _store(folder: Path, name: str, source: Source, asking: Asking) -> None:
    """Decode the missing blocks of a split, then write the record of all its blocks."""
    blocks, size = Blocks(folder, name, source.digest), max(_sizes(source))
    whole = cut(len(source), size)
    work = ranks.of_first(lambda: [rows for rows in whole if not blocks.is_whole(rows)])
    left, rank = sum(map(len, work)), ranks.current()
    asking.progress.start(f"decoding {name}", total=len(source), unit="rows", done=len(source) - left)
    own = work[rank.index :: rank.world] if ranks.several() else work
    together = max(1, min(AT_ONCE, BYTES // size))
    batched = [batch for rows in own for batch in _batches(rows, together)]
    stream = _loaded(source, batched, _workers(name, source, batched, asking))
    for rows in own:
        parts = list(itertools.islice(stream, len(_batches(rows, together))))
        shapes, pixels = (np.concatenate([part[at].numpy() for part in parts]) for at in (0, 1))
        blocks.put(rows, shapes, pixels)
        asking.progress.advance(len(rows) * (rank.world if ranks.several() else 1))
    ranks.wait()
    noted = ranks.of_first(lambda: _noted(blocks, whole, source))
    record = blocks.folder / RECORD
    if not is_seen(lambda: record.is_file() and sha256_file(record) == noted and _there(blocks, whole)):
        raise unseen_here(blocks.folder, "the others")
    ranks.wait()


def _workers(name: str, source: Source, batched: Sequence[range], asking: Asking) -> int:
    """The number of loader processes that decode: as configured, or as a trial finds faster."""
    if not asking.tries_workers or not batched:
        return asking.workers
    rows = [row for batch in batched for row in batch]
    started, some = time.monotonic(), rows[len(rows) // 3 :][:TIMED]
    for row in some:
        source.item(row)
    each = (time.monotonic() - started) / len(some)
    size = at_once(each, 0.0, len(batched[0]))
    cut = [few for batch in batched for few in _batches(batch, size)]

    def trial(workers: int) -> Generator[int]:
        for batch, _ in zip(cut, _loaded(source, cut, workers), strict=True):
            yield len(batch)

    processes = offered(each, 0.0, len(rows))
    return by_trial(f"decoding {name}", processes, lambda workers: rate_of(trial(workers)), asking.progress)


def _noted(blocks: Blocks, whole: Sequence[range], source: Source) -> str:
    """Write the record of all blocks, once every block is visible, and return the record's sha256."""
    if not is_seen(lambda: _there(blocks, whole)):
        lacking = next(rows for rows in whole if not blocks.path(rows).is_file())
        raise unseen(f"Pictures of rows {lacking.start} to {lacking.stop - 1}", blocks.folder)
    blocks.note(whole, source.digest_scope)
    return sha256_file(blocks.folder / RECORD)


def _there(blocks: Blocks, whole: Sequence[range]) -> bool:
    return all(blocks.path(rows).is_file() for rows in whole)


def _batches(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Rows(Dataset[Array]):
    """The image of each row. Runs in loader processes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Array:
        return self.source.item(row).x


def _loaded(source: Source, cut: Sequence[range], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches(_Rows(source), [list(batch) for batch in cut], _flat, workers, CPU)


def _flat(pictures: list[Array]) -> tuple[Tensor, Tensor]:
    """Shapes (B, 3), and the pixels of images of any sizes, end to end."""
    shapes = np.array([x.shape for x in pictures], np.int32)
    return torch.from_numpy(shapes), torch.from_numpy(np.concatenate([x.reshape(-1) for x in pictures]))
