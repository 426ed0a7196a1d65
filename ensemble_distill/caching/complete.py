"""Whether a cache is complete, so that nothing needs to be written: then it may be read-only, and in use elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ensemble_distill.cache.manifest import ARGS, Manifest, as_recorded, is_cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.cache.writer import unneeded
from ensemble_distill.caching.decoding import all_stored
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.facts import Member
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.teachers.teacher import Teacher


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
        and all(key in manifest.records for key in keys(splits, members))
        and all(key.path(folder).is_file() for key in manifest.records)
        and not unneeded(folder)
    )


def keys(splits: Mapping[str, SplitPlan], members: Sequence[Member]) -> Iterator[RecordKey]:
    """The records that a pass is to end with."""
    for name, plan in splits.items():
        for member, view in itertools.product(members, range(plan.count)):
            yield RecordKey(name, member.name, view)


def held(
    folder: Path, plans: Mapping[str, SplitPlan], teachers: Sequence[Teacher], overwrite: bool, decoded: bool
) -> AbstractContextManager[None]:
    """The cache's lock, which the first of several processes holds for all. A complete one is not locked, since nothing
    is written: it may be read-only, or in use.

    Args:
        decoded: whether it is to hold decoded pictures, too.
    """
    if not ranks.is_first():
        return nullcontext()
    complete = (
        not overwrite
        and is_cache(folder)
        and (folder / ARGS).is_file()
        and is_complete(folder, plans, [teacher.member for teacher in teachers])
        and (not decoded or all_stored(folder, plans))
    )
    return nullcontext() if complete else one_writer(folder)
