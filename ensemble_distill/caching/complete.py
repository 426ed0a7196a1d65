"""Whether a cache is complete, so that nothing needs to be written: then it may be read-only, and in use elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ensemble_distill.cache.manifest import Manifest, as_recorded, key
from ensemble_distill.cache.writer import record_path, unneeded
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.facts import Member


def is_complete(folder: Path, splits: Mapping[str, SplitPlan], members: Sequence[Member]) -> bool:
    """Whether a pass over these splits and members would change nothing in the folder. What the cache was made from is
    for the pass to compare.

    Raises:
        EdistillError: the manifest is damaged.
    """
    manifest = Manifest.load(folder)
    kinds = {plan.source.kind for plan in splits.values()}
    return (
        manifest.members == tuple(as_recorded(manifest.members, member, kinds) for member in members)
        and all(name in manifest.records for name in keys(splits, members))
        and all(record_exists(folder, name) for name in manifest.records)
        and not unneeded(folder)
    )


def keys(splits: Mapping[str, SplitPlan], members: Sequence[Member]) -> Iterator[str]:
    """The records that a pass is to end with."""
    for name, plan in splits.items():
        for member, view in itertools.product(members, range(plan.count)):
            yield key(name, member.name, view)


def record_exists(folder: Path, name: str) -> bool:
    """Whether the file of a noted record is there."""
    split, member, view = name.rsplit("/", 2)
    return record_path(folder, split, member, int(view)).is_file()
