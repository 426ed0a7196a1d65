"""The cache as a training reads it, known to be of the data, the views and the members that there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ensemble_distill.cache.manifest import as_recorded, refuse_other_data, refuse_other_members
from ensemble_distill.cache.reader import Cache, stored_inputs
from ensemble_distill.caching.pushing import refuse_other_making
from ensemble_distill.caching.replay import check_samples
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import names_in
from ensemble_distill.runs.trust import Trust
from ensemble_distill.settings import Settings
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.rows import CachedSplit
from ensemble_distill.workspace.splits import class_names, open_ensemble


def learned_from(settings: Settings, cache: Cache) -> Cache:
    """The cache of the members that the student learns from."""
    return cache if settings.train.teacher is None else cache.only(settings.train.teacher)


def cached_split(cache: Cache, name: str, plan: SplitPlan) -> CachedSplit:
    """A split joined to its records, once data and views are known to be those the members saw."""
    if name not in cache.manifest.splits:
        raise EdistillError(f"{cache.folder} does not hold {name}. Run edistill cache-logits.")
    refuse_other_data(cache.folder, name, cache.manifest.splits[name], plan.facts())
    refuse_other_making(cache.folder, name, plan, cache.manifest)
    records = cache.open(name, plan.count)
    check_samples(cache.folder, name, plan.rows(), plan.count)
    inputs = stored_inputs(cache.folder, cache.manifest, name, range(plan.count))
    return CachedSplit(plan.source, plan.view, plan.seed, records, inputs)


def cached_teachers(settings: Settings, cache: Cache, plans: Mapping[str, SplitPlan], trusted: Trust) -> list[Teacher]:
    """The teachers where they are still there, known to be the cached ones: they are hashed again, since stale outputs
    silently reused are the commonest mistake."""
    if not Path(settings.teachers.path).exists():
        return []
    kinds = [plan.source.kind for plan in plans.values()]
    teachers = [
        replace(teacher, member=as_recorded(cache.manifest.members, teacher.member, kinds))
        for teacher in open_ensemble(settings, _known_names(cache, plans), trusted)
    ]
    found = [teacher.member for teacher in teachers]
    refuse_other_members(cache.folder, cache.manifest.members, found)
    new = [member.name for member in found if member.name not in cache.manifest.names]
    if new:
        raise EdistillError(
            f"{cache.folder} holds {len(cache.manifest.names)} members, and teachers.path has {len(found)}: "
            f"{', '.join(new)} is not cached. Run edistill cache-logits to add it, or take it away."
        )
    return teachers


def _known_names(cache: Cache, plans: Mapping[str, SplitPlan]) -> tuple[str, ...] | None:
    """The class names that the members were opened with for the cache; None where the data had none."""
    names = class_names({name: plan.source for name, plan in plans.items()}, cache.manifest.classes)
    return names_in(cache.manifest.classes) if names is None else names  # another split may have them
