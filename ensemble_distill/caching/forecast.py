"""How many bytes a pass will write, told before the first and compared with the disk's room."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble_distill.cache.manifest import Drawn, Manifest
from ensemble_distill.cache.record_key import RecordKey, SampleKey
from ensemble_distill.caching.complete import keys
from ensemble_distill.caching.panel import Asking
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.errors import EdistillError

WORTH_TELLING = 2**30  # bytes
JOINED = 2  # times the records of one split: parts are joined to files before they go


def forecast(manifest: Manifest, splits: Mapping[str, SplitPlan], drawn: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the records that each split still lacks.

    Args:
        drawn: ids a position of splits whose records hold no others.
    """
    lacking = {
        name: [k for k in keys({name: plan}, manifest.members) if k not in manifest.records]
        for name, plan in splits.items()
    }
    return {
        name: len(plan.source) * _of_a_row(manifest, lacking[name], drawn.get(name)) for name, plan in splits.items()
    }


def _of_a_row(manifest: Manifest, lacking: Sequence[RecordKey], samples: int | None) -> int:
    """Bytes of a row in all these records and, where ids are drawn, in those of the ids."""
    if samples is None:
        return len(lacking) * manifest.format.record.itemsize
    draws = {SampleKey(key.split, key.view) for key in lacking}
    as_drawn = replace(manifest, drawn=dict.fromkeys(draws, Drawn((("", ""),), samples)))
    of_ids = [as_drawn.format_of(key).record.itemsize for key in draws if key not in manifest.records]
    return sum(of_ids) + sum(as_drawn.format_of(key).record.itemsize for key in lacking)


def refuse_no_room(folder: Path, manifest: Manifest, splits: Mapping[str, SplitPlan], asking: Asking) -> None:
    """Raise EdistillError where the disk cannot hold what the pass will write; a large pass is told."""
    each = forecast(manifest, splits, asking.drawn)
    needed = sum(each.values()) + (JOINED - 1) * max(each.values(), default=0)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    of_a_row = manifest.format.record.itemsize
    if needed > free and asking.drawn:
        largest = max(each, key=lambda name: (name not in asking.drawn, each[name]))
        raise EdistillError(
            f"The pass writes {needed / 1e9:,.1f} GB, {largest} alone {each[largest] / 1e9:,.1f}, and the disk "
            f"of {folder} has {free / 1e9:,.1f} GB left. Fidelity and uncertainties need all of "
            f"{manifest.settled.told}, so what is not trained on stays whole. Take fewer rows of it "
            f"(rows of data.{largest.replace('/', '.')}), name another output.cache, or make room."
        )
    if needed > free:
        raise EdistillError(
            f"The pass writes {needed / 1e9:,.1f} GB, {of_a_row:,} bytes a row and member for {manifest.settled.told}, "
            f"and the disk of {folder} has {free / 1e9:,.1f} GB left. {manifest.settled.smaller_records}"
        )
    if needed > WORTH_TELLING:
        each_row = "" if asking.drawn else f", {of_a_row:,} bytes a row and member"
        asking.progress.note(f"The pass writes about {needed / 1e9:,.1f} GB{each_row}.")
