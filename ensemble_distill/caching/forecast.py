"""Forecast of a pass's time and bytes, reported before it begins and compared with the free disk space."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ensemble_distill.cache.manifest import Drawn, Manifest
from ensemble_distill.cache.record_key import RecordKey, SampleKey
from ensemble_distill.caching.complete import keys
from ensemble_distill.caching.grouping import readings
from ensemble_distill.caching.panel import Asking, wanted
from ensemble_distill.caching.seen import seen
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.disk import free_bytes
from ensemble_distill.runtime.spread import spread
from ensemble_distill.runtime.words import bytes_told, counted, duration
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.streamed import Room

Told = TypeVar("Told")

TIMED = 32  # rows
WORTH_TIMING = 16 * TIMED  # rows, counted once per view; in a shorter pass the timed ones would be a large part
JOINED = 2  # factor on the records of one split: parts are deleted only after they are joined


def forecast(manifest: Manifest, splits: Mapping[str, SplitPlan], drawn: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the records that each split still lacks.

    Args:
        drawn: ids per position, for splits whose records hold drawn ids only.
    """
    lacking = {
        name: [k for k in keys({name: plan}, manifest.members) if k not in manifest.records]
        for name, plan in splits.items()
    }
    return {
        name: len(plan.source) * _of_a_row(manifest, lacking[name], drawn.get(name)) for name, plan in splits.items()
    }


def _of_a_row(manifest: Manifest, lacking: Sequence[RecordKey], samples: int | None) -> int:
    """Bytes of one row in all these records and, if ids are drawn, in the missing records of the ids."""
    if samples is None:
        return len(lacking) * manifest.format.record.itemsize
    draws = {SampleKey(key.split, key.view) for key in lacking}
    as_drawn = replace(manifest, drawn=dict.fromkeys(draws, Drawn((("", ""),), samples)))
    of_ids = [as_drawn.format_of(key).record.itemsize for key in draws if key not in manifest.records]
    return sum(of_ids) + sum(as_drawn.format_of(key).record.itemsize for key in lacking)


def refuse_no_room(
    folder: Path, manifest: Manifest, splits: Mapping[str, SplitPlan], asking: Asking
) -> tuple[int, int]:
    """The bytes that the pass will leave on disk, and the free bytes.

    Raises:
        EdistillError: the pass needs more than is free.
    """
    each = forecast(manifest, splits, asking.drawn)
    needed = sum(each.values()) + (JOINED - 1) * max(each.values(), default=0)
    free = free_bytes(folder)
    of_a_row = manifest.format.record.itemsize
    if needed > free and asking.drawn:
        largest = max(each, key=lambda name: (name not in asking.drawn, each[name]))
        raise EdistillError(
            f"The pass writes {bytes_told(needed)}, {largest} alone {bytes_told(each[largest])}, and the disk "
            f"of {folder} has {bytes_told(free)} left. Fidelity and uncertainties need all of "
            f"{manifest.settled.told}, so what is not trained on stays whole. Take fewer rows of it "
            f"(rows of data.{largest.replace('/', '.')}), name another output.cache, or make room."
        )
    if needed > free:
        raise EdistillError(
            f"The pass writes {bytes_told(needed)}, {of_a_row:,} bytes a row and member for {manifest.settled.told}, "
            f"and the disk of {folder} has {bytes_told(free)} left. {manifest.settled.smaller_records}"
        )
    return sum(each.values()), free


def tell_pass(
    manifest: Manifest,
    splits: Mapping[str, SplitPlan],
    groups: Sequence[Sequence[Answering]],
    asking: Asking,
    disk: tuple[int, int],
    room: Room,
) -> None:
    """Report, before a pass, how many rows its members are asked about, how long that will take and what it will fill.

    Args:
        groups: the members, on their device, as they are asked; see `Turns`.
        disk: bytes that the pass writes, and bytes free.
        room: the memory for the members' weights.
    """
    asked = {name: len(plan.source) * _views(manifest, name, plan) for name, plan in splits.items()}
    rows = sum(asked.values())
    if not rows:
        return
    needed, free = disk
    about = ""
    if rows >= WORTH_TIMING and groups:
        largest = max(asked, key=lambda name: asked[name])
        try:
            each = in_turn(*seconds_a_row(largest, splits[largest], groups[0], asking.device), groups)
            reading = room.seconds * sum(readings(manifest, splits, asking).values()) if len(groups) > 1 else 0
            about = f"about {duration(rows * each / ranks.current().world + reading)}, "
        except EdistillError:  # a row cannot be read: the pass raises this error when it gets there
            pass
    what = f"{counted(sum(map(len, groups)), 'member')}, {counted(len(splits), 'split')}, {rows:,} rows in their views"
    asking.progress.note(f"{what}: {about}{bytes_told(needed)} to write, {bytes_told(free)} free.")


def in_turn(rendering: float, asking: float, groups: Sequence[Sequence[Answering]]) -> float:
    """Seconds per row for all groups.

    Each group renders the row again; members are assumed to be as fast as in the first group.

    Args:
        rendering, asking: seconds of rendering a row, and of asking the first group about it.
    """
    return rendering * len(groups) + asking * sum(map(len, groups)) / len(groups[0])


def seconds_a_row(
    name: str, plan: SplitPlan, members: Sequence[Answering], device: torch.device
) -> tuple[float, float]:
    """Seconds of rendering one row for all members, and of asking them all about it.

    Each is timed on a second call, since the first one sets things up.
    """
    rows = spread(len(plan.source), TIMED)
    view, wants, last = plan.rows(), wanted(members), plan.count - 1  # view 0 may be the plain row
    shown, rendering = timed(lambda: seen(view, rows, [last], wants))
    asking = 0.0
    for member in members:
        x = shown.get((last, member.wants)) if member.wants is not None else None
        given = None if x is None else x.to(device)
        asking += timed(lambda member=member, given=given: member.answers(name, rows, given))[1]  # type: ignore[misc]
    return rendering / len(rows), asking / len(rows)


def timed(act: Callable[[], Told]) -> tuple[Told, float]:
    """The result of the second call, and its seconds."""
    act()
    started = time.monotonic()
    return act(), time.monotonic() - started


def _views(manifest: Manifest, name: str, plan: SplitPlan) -> int:
    """The number of views that lack some member's answers."""
    return len({key.view for key in keys({name: plan}, manifest.members) if key not in manifest.records})
