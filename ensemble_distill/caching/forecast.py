"""How many bytes a pass will write, told before the first and compared with the disk's room."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching.complete import keys
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.progress import Progress

WORTH_TELLING = 2**30  # bytes
JOINED = 2  # times the records of one split: parts are joined to files before they go


def forecast(manifest: Manifest, splits: Mapping[str, SplitPlan]) -> dict[str, int]:
    """Bytes of the records that each split still lacks."""
    size = manifest.format.record.itemsize
    lacking = {
        name: [k for k in keys({name: plan}, manifest.members) if k not in manifest.records]
        for name, plan in splits.items()
    }
    return {name: len(lacking[name]) * len(plan.source) * size for name, plan in splits.items()}


def refuse_no_room(folder: Path, manifest: Manifest, splits: Mapping[str, SplitPlan], progress: Progress) -> None:
    """Raise EdistillError where the disk cannot hold what the pass will write; a large pass is told."""
    each = forecast(manifest, splits)
    needed = sum(each.values()) + (JOINED - 1) * max(each.values(), default=0)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    of_a_row = manifest.format.record.itemsize
    if needed > free:
        raise EdistillError(
            f"The pass writes {needed / 1e9:,.1f} GB, {of_a_row:,} bytes a row and member for {manifest.settled.told}, "
            f"and the disk of {folder} has {free / 1e9:,.1f} GB left. {manifest.settled.smaller_records}"
        )
    if needed > WORTH_TELLING:
        progress.note(f"The pass writes about {needed / 1e9:,.1f} GB, {of_a_row:,} bytes a row and member.")
