"""The cache as a training reads it, checked to be of the present data, views and members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ensemble_distill.cache.manifest import refuse_other_data, refuse_other_members
from ensemble_distill.cache.reader import Cache, stored_inputs
from ensemble_distill.caching.complete import teachers_as_recorded
from ensemble_distill.caching.pushing import refuse_other_making
from ensemble_distill.caching.replay import check_samples
from ensemble_distill.caching.unchanged import refuse_changed_members
from ensemble_distill.data.decoded import decodes, is_decoded
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.source import positions_of
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import TRAINED, names_in
from ensemble_distill.settings import StudentSettings
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.teachers.tried import TriedFirst
from ensemble_distill.training.asked import Learned
from ensemble_distill.training.rows import CachedSplit
from ensemble_distill.workspace.splits import class_names, student_preprocessing
from ensemble_distill.workspace.workspace import Workspace, sources_of


def trained_splits(workspace: Workspace) -> dict[str, SplitPlan]:
    """The splits to train on. Raises EdistillError if there is no training split."""
    names = [name for name in TRAINED if name in workspace.split_names]
    if "train" not in names:
        raise EdistillError("data.train is not set. Set it to the data the cache was made from.")
    return workspace.splits(names, workspace.cache.manifest.classes)


def tell_not_stored(workspace: Workspace, plans: Mapping[str, SplitPlan]) -> None:
    """Warn about splits whose decoded images should be read from the cache and are not there."""
    lacking = [name for name, plan in plans.items() if decodes(plan.source) and not is_decoded(plan.source)]
    if workspace.settings.cache.decoded and lacking:
        workspace.progress.warn(
            f"cache.decoded is on, and {workspace.pictures or workspace.cache_folder} has no decoded pictures of "
            f"{' and '.join(lacking)}: they are decoded as they are read. Run edistill cache-logits to store them."
        )


def trained_rows(workspace: Workspace, needs: frozenset[str]) -> int:
    """How many rows a student is trained on, by the cache or else by the data.

    Args:
        needs: what its method needs: "teacher", "labels" or both.

    Raises:
        EdistillError: a split cannot be opened, or the cache is damaged.
    """
    names = [name for name in TRAINED if name in workspace.split_names]
    if "teacher" not in needs and "transfer" in names and workspace.source("transfer").labels is None:
        names.remove("transfer")
    held = workspace.cache.manifest.splits if workspace.has_cache else {}
    return sum(held[name].rows if name in held else len(workspace.source(name)) for name in names)


def learned_from(workspace: Workspace) -> Cache:
    """The cache, with only the members that the student learns from."""
    teacher = workspace.settings.train.teacher
    return workspace.cache if teacher is None else workspace.cache.only(teacher)


def open_learned(workspace: Workspace, plans: Mapping[str, SplitPlan], needs: frozenset[str]) -> Learned:
    """Open what a student learns from: the cache, and the splits to train on.

    Args:
        needs: what its method needs: "teacher", "labels" or both.

    Raises:
        EdistillError: the cache is of other data, views or members, or holds none of these splits.
    """
    sources = sources_of(plans)
    if "teacher" not in needs:  # unlabeled rows have no target
        plans = {name: plan for name, plan in plans.items() if plan.source.labels is not None}
    teachers = cached_teachers(workspace, plans)
    cache, settings = learned_from(workspace), workspace.settings
    splits = {name: cached_split(cache, name, plan) for name, plan in plans.items()}
    taken = _taken_apart(settings.student, teachers, cache, positions_of(sources["train"]))
    refuse_changed_members(cache, workspace.split, workspace.split_names, taken)
    manifest = cache.manifest
    return Learned(
        task=manifest.settled,
        cache=cache,
        sources=sources,
        splits=splits,
        validation=_validation(workspace, cache, needs),
        teachers=teachers,
        preprocessing=student_preprocessing(
            settings.student.preprocessing, manifest.members, next(iter(sources.values()))
        ),
    )


def _taken_apart(
    student: StudentSettings, teachers: Sequence[Teacher], cache: Cache, positions: int | None
) -> Iterator[Answering]:
    """The members whose modules may become the student's, opened one at a time."""
    task = cache.manifest.settled
    for teacher in teachers:
        if teacher.member.name == student.init or student.from_members or student.share:
            yield TriedFirst(teacher.open(type(task), positions), len(task.names) or None, lambda told: None)


def _validation(workspace: Workspace, cache: Cache, needs: frozenset[str]) -> CachedSplit | None:
    """The validation rows; None if they are not cached, or lack the labels or members that the loss needs."""
    name, manifest = "validation", cache.manifest
    if name not in workspace.split_names or manifest.views(name) == 0:
        return None
    plan = workspace.splits([name], manifest.classes)[name]
    refuse_other_data(cache.folder, name, manifest.splits[name], plan.facts())
    records = cache.open(name)
    if not can_validate(plan, needs):
        return None
    if records.partial and "teacher" in needs and not records.answered().any():
        return None
    return CachedSplit(plan.source, plan.view, plan.seed, records)


def can_validate(plan: SplitPlan, needs: frozenset[str]) -> bool:
    """Whether the validation rows have the labels that the loss needs."""
    return plan.source.labels is not None or "labels" not in needs


def cached_split(cache: Cache, name: str, plan: SplitPlan) -> CachedSplit:
    """A split with its records, once data and views are known to be those that the members saw."""
    if name not in cache.manifest.splits:
        raise CacheError(f"{cache.folder} does not hold {name}. Run edistill cache-logits.")
    refuse_other_data(cache.folder, name, cache.manifest.splits[name], plan.facts())
    refuse_other_making(cache.folder, name, plan, cache.manifest)
    records = cache.open(name, plan.count)
    check_samples(cache.folder, name, plan.rows(), plan.count)
    inputs = stored_inputs(cache.folder, cache.manifest, name, range(plan.count))
    return CachedSplit(plan.source, plan.view, plan.seed, records, inputs)


def cached_teachers(workspace: Workspace, plans: Mapping[str, SplitPlan]) -> list[Teacher]:
    """The teachers, if their folder exists, checked to be the cached ones.

    They are hashed again, since silently reusing stale outputs is the most common mistake.
    """
    if not workspace.has_teachers:
        return []
    cache = workspace.cache
    teachers = teachers_as_recorded(cache.manifest, plans, workspace.ensemble(_known_names(cache, plans)))
    found = [teacher.member for teacher in teachers]
    refuse_other_members(cache.folder, cache.manifest.members, found)
    new = [member.name for member in found if member.name not in cache.manifest.names]
    if new:
        raise CacheError(
            f"{cache.folder} holds {len(cache.manifest.names)} members, and teachers.path has {len(found)}: "
            f"{', '.join(new)} is not cached. Run edistill cache-logits to add it, or take it away."
        )
    return teachers


def _known_names(cache: Cache, plans: Mapping[str, SplitPlan]) -> tuple[str, ...] | None:
    """The class names that the members were opened with for the cache; None if the data had none."""
    names = class_names({name: plan.source for name, plan in plans.items()}, cache.manifest.classes)
    return names_in(cache.manifest.classes) if names is None else names  # names may come from a split not in `plans`
