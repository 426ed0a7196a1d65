"""Whether members still answer as a cache has it, wherever they are opened beside it.

Their weights are hashed, but their code is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.caching.probe import refuse_changed
from ensemble_distill.caching.seen import seen
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.rendition import pushes
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.teachers.answering import Answering

SMALL_FIRST = ("validation", "test", "calibration", "train", "transfer")  # only one of them is opened


def refuse_changed_members(
    cache: Cache, plan: Callable[[str], SplitPlan], names: Collection[str], members: Iterable[Answering]
) -> None:
    """Raise EdistillError for a member that answers the first row of a cached split otherwise than the cache has it.

    Members that the cache does not hold are not asked, nor is any if the data are others than the cached ones.

    Args:
        plan: opens a split.
        names: the configured splits.
        members: opened one at a time.
    """
    manifest = cache.manifest
    name = next((name for name in SMALL_FIRST if name in manifest.splits and name in names), None)
    if name is None or pushes((found := plan(name)).view) or not _is_cached(manifest, name, found):
        return
    cached, rows = {member.sha256: member.name for member in manifest.members}, some_rows(len(found.source))
    for asked in members:
        key = RecordKey(name, cached.get(asked.member.sha256, ""), 0)
        if asked.wants is not None and key in manifest.records:
            x = seen(found.rows(), rows, [0], [asked.wants])[0, asked.wants]
            refuse_changed(cache.folder, manifest, key, asked.answers(name, rows, x)[:1])


def _is_cached(manifest: Manifest, name: str, plan: SplitPlan) -> bool:
    there, here = manifest.splits[name], plan.facts()
    return (there.digest, there.transform, there.seed) == (here.digest, here.transform, here.seed)
