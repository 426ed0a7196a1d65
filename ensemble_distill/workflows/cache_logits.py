"""`edistill cache-logits`: what every member says of every split and view, once."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.cache.manifest import NAME, Manifest, is_cache
from ensemble_distill.caching.complete import is_complete
from ensemble_distill.caching.idle import Caching, tell_idle_caching
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.runtime.files import write_text
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings, settings_toml
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.workspace import Workspace
from ensemble_distill.workspace.folders import refuse_foreign
from ensemble_distill.workspace.splits import class_names, tell_remarks
from ensemble_distill.workspace.workspace import sources_of

ARGS = "args.toml"  # the settings that a cache was made with


@dataclass(frozen=True)
class CacheReport:
    """What the cache holds now, and what this pass added."""

    folder: Path
    members: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, tuple[int, int]]  # rows and views by name
    added: int  # records; 0 when it was up to date
    bytes: int
    seconds: float

    @classmethod
    def of(cls, folder: Path, added: int, seconds: float) -> CacheReport:
        """What the cache in a folder holds."""
        manifest = Manifest.load(folder)
        return cls(
            folder=folder,
            members=manifest.names,
            classes=manifest.classes,
            splits={name: (split.rows, manifest.views(name)) for name, split in manifest.splits.items()},
            added=added,
            bytes=sum(path.stat().st_size for path in (folder / "records").rglob("*.npy")),
            seconds=seconds,
        )


def cache_logits(
    settings: Settings,
    *,
    only: Collection[str] | None = None,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> CacheReport:
    """Bring the cache up to date with the settings; what is there already is not computed again.

    Args:
        only: these splits, without a word on what more members or views would do; default all that are configured.
        overwrite: drop the cache that is there, once it is known that another can be made.
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: the teachers or the data cannot be used, or the cache was made from others.
    """
    started = time.monotonic()
    workspace = Workspace(settings, progress or Silent(), trust)
    folder = workspace.cache_folder
    refuse_foreign(folder, NAME, "a cache", "output.cache")
    known = None if overwrite else workspace.cached_names
    plans = workspace.splits(only, known)
    sources = sources_of(plans)
    teachers = workspace.ensemble(class_names(sources, known))
    tell_remarks(sources, workspace.progress)
    tell_idle_caching(Caching(settings, sources, teachers), workspace.progress)
    if only is None:
        _warn_of_little_diversity(settings, teachers, plans, workspace.progress)
    asking = Asking(
        dtype=settings.cache.dtype or workspace.task.dtypes[0],
        batch_size=settings.cache.batch_size,
        device=workspace.device,
        workers=workspace.workers,
        progress=workspace.progress,
    )
    with _held(folder, plans, teachers, overwrite):
        added = cache_outputs(folder, workspace.task, plans, teachers, asking, overwrite)
        if added or not (folder / ARGS).is_file():
            write_text(folder / ARGS, settings_toml(settings, folder), within=folder)
    return CacheReport.of(folder, added, time.monotonic() - started)


def _warn_of_little_diversity(
    settings: Settings, teachers: Sequence[Teacher], plans: Mapping[str, SplitPlan], progress: Progress
) -> None:
    if len(teachers) == 1:
        progress.warn(f"{teachers[0].member.name} is the only member: there is no diversity to keep.")
    if settings.views.transform == "none" and "train" in plans:
        progress.warn(
            'views.transform is "none": on the rows they were trained on members agree, and there is little diversity '
            "to learn. Set views.transform to affine, crop-flip, mixup, noise or ods."
        )


def _held(
    folder: Path, plans: Mapping[str, SplitPlan], teachers: Sequence[Teacher], overwrite: bool
) -> AbstractContextManager[None]:
    """The lock; none for a complete cache, where nothing will be written: it may be read-only, or another's."""
    complete = (
        not overwrite
        and is_cache(folder)
        and (folder / ARGS).is_file()
        and is_complete(folder, plans, [teacher.member for teacher in teachers])
    )
    return nullcontext() if complete else one_writer(folder)
