"""`edistill cache-logits`: every member's answers for every split and view, computed once."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from ensemble_distill.cache.manifest import ARGS, NAME
from ensemble_distill.caching.complete import held
from ensemble_distill.caching.idle import Caching, tell_idle_caching, warn_of_little_diversity
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.caching.report import CacheReport
from ensemble_distill.data.notes import keep_notes
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.devices import whole_float32
from ensemble_distill.runtime.files import write_text
from ensemble_distill.runtime.job import opened
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.shared import see_as_first
from ensemble_distill.settings import Settings, settings_toml
from ensemble_distill.teachers.ready_made import MODEL as READY_MADE
from ensemble_distill.workspace import Workspace
from ensemble_distill.workspace.alike import refuse_differing_inputs, refuse_differing_settings
from ensemble_distill.workspace.folders import refuse_foreign
from ensemble_distill.workspace.splits import class_names, tell_remarks
from ensemble_distill.workspace.workspace import sources_of


def cache_logits(
    settings: Settings,
    *,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> CacheReport:
    """Bring the cache up to date with the settings; existing records are not computed again.

    Args:
        overwrite: delete the existing cache, once it is known that another can be made.
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: the teachers or the data cannot be used, or the cache was made from others.
    """
    with opened(settings.train.peer_timeout):
        return cache_in(Workspace(settings, progress or Silent(), trust), overwrite=overwrite)


def cache_in(workspace: Workspace, *, only: Collection[str] | None = None, overwrite: bool = False) -> CacheReport:
    """Bring the cache of an ensemble, or of a generation of a chain, up to date.

    Args:
        only: these splits only, for a chain: without a forecast, advice about diversity or a comparison with the
            labels; all configured splits by default.
    """
    started, settings = time.monotonic(), workspace.settings
    if settings.cache.decoded and workspace.pictures is None:  # this command stores them
        workspace = replace(workspace, reads_decoded=False)
    refuse_differing_settings(workspace, "cache-logits", overwrite)
    folder = workspace.cache_folder
    see_as_first([folder / NAME])
    refuse_foreign(folder, NAME, "a cache", "output.cache")
    known = None if overwrite else workspace.cached_names
    plans = workspace.splits(only, known)
    sources = sources_of(plans)
    teachers = workspace.ensemble(class_names(sources, known))
    tell_remarks(sources, workspace.progress)
    tell_idle_caching(Caching(settings, sources, teachers), workspace.progress)
    # ready-made outputs may be out-of-fold: whether to warn is decided after the pass
    tables = all(teacher.member.model == READY_MADE for teacher in teachers)
    if only is None and not tables:
        warn_of_little_diversity(settings.views.transform, plans, teachers, workspace.progress)
    asking = Asking(
        dtype=settings.cache.dtype or workspace.task.dtypes[0],
        batch_size=settings.cache.batch_size,
        device=workspace.device,
        workers=workspace.workers,
        progress=workspace.progress,
        records=settings.cache.records,
        samples=settings.cache.samples,
        forecast=only is None,
        check_labels=settings.cache.check_labels if only is None else None,
        tries_workers=settings.train.workers is None and only is None,
        decoded=settings.cache.decoded and workspace.pictures is None,
    )
    refuse_differing_inputs(plans, teachers)
    with held(folder, plans, teachers, overwrite, asking.decoded), whole_float32():
        added = cache_outputs(folder, workspace.task, plans, teachers, asking, overwrite)
        if ranks.is_first():
            if added or not (folder / ARGS).is_file():
                write_text(folder / ARGS, settings_toml(settings, folder), within=folder)
            keep_notes(sources.values(), folder)
    report = ranks.of_first(lambda: CacheReport.of(folder, added, time.monotonic() - started))
    if only is None and tables and "train" not in report.answered:
        warn_of_little_diversity(settings.views.transform, plans, teachers, workspace.progress)
    return report
