"""Whether a cache is complete, so that nothing has to be written: it may then be read-only, or in use elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
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
    """Whether a pass over these splits and members would leave the folder unchanged.

    Data and storage are not compared here; the pass compares them.

    Raises:
        EdistillError: the manifest is damaged.
    """
    manifest = Manifest.load(folder)
    return (
        manifest.members == tuple(members_as_recorded(manifest, splits, members))
        and is_whole(folder, manifest, splits, members)
        and not unneeded(folder)
    )


def members_as_recorded(manifest: Manifest, splits: Mapping[str, SplitPlan], members: Sequence[Member]) -> list[Member]:
    """The members as a cache of these splits records them."""
    kinds = {plan.source.kind for plan in splits.values()}
    return [as_recorded(manifest.members, member, kinds) for member in members]


def teachers_as_recorded(
    manifest: Manifest, splits: Mapping[str, SplitPlan], teachers: Sequence[Teacher]
) -> list[Teacher]:
    """The teachers, with their members as a cache of these splits records them."""
    known = members_as_recorded(manifest, splits, [teacher.member for teacher in teachers])
    return [replace(teacher, member=member) for teacher, member in zip(teachers, known, strict=True)]


def is_whole(folder: Path, manifest: Manifest, splits: Mapping[str, SplitPlan], members: Sequence[Member]) -> bool:
    """Whether the manifest has every record that a pass should end with, and every record in it has its file."""
    wanted = keys(splits, members)
    return all(key in manifest.records for key in wanted) and all(k.path(folder).is_file() for k in manifest.records)


def keys(splits: Mapping[str, SplitPlan], members: Sequence[Member]) -> Iterator[RecordKey]:
    """The records that a pass should end with."""
    for name, plan in splits.items():
        for member, view in itertools.product(members, range(plan.count)):
            yield RecordKey(name, member.name, view)


def held(
    folder: Path, plans: Mapping[str, SplitPlan], teachers: Sequence[Teacher], overwrite: bool, decoded: bool
) -> AbstractContextManager[None]:
    """The cache's lock, which the first of several processes holds for all.

    A complete cache is not locked, since nothing is written: it may be read-only, or in use.

    Args:
        decoded: whether the cache should hold decoded images, too.
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
