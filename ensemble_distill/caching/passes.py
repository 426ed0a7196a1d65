"""The pass: sources × teachers → cache. Each row is decoded once, each view rendered once for all members that
share a preprocessing, and each member's outputs go to its own record. Inputs of views that push are stored first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import (
    FILES,
    NAME,
    Manifest,
    as_recorded,
    is_cache,
    refuse_other_data,
    refuse_other_members,
)
from ensemble_distill.cache.reader import StoredInputs
from ensemble_distill.cache.record_key import RecordKey, inputs_place
from ensemble_distill.cache.writer import Writer, blocks, clean, drop_inputs, drop_member, drop_parts
from ensemble_distill.caching.again import ask_again
from ensemble_distill.caching.complete import keys
from ensemble_distill.caching.meaning import check_meaning
from ensemble_distill.caching.panel import Panel
from ensemble_distill.caching.probe import open_modules, probe, refuse_changed
from ensemble_distill.caching.pushing import (
    inputs_of_first_view,
    push_inputs,
    refuse_other_making,
    refuse_other_sizes,
)
from ensemble_distill.caching.seen import shown_of, stack
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.replay import check_samples, drop_samples, keep_samples
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, Split
from ensemble_distill.runtime.files import clear_folder
from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.versions import library_versions
from ensemble_distill.tasks.checks.logits import FLOOR
from ensemble_distill.teachers.outputs import forward, to_outputs
from ensemble_distill.teachers.teacher import Teacher


def cache_outputs(
    folder: Path,
    task: str,
    splits: Mapping[str, SplitPlan],
    teachers: Sequence[Teacher],
    *,
    dtype: str,
    batch_size: int,
    device: torch.device,
    workers: int,
    progress: Progress,
    overwrite: bool = False,
) -> int:
    """Bring the cache in `folder` up to date with splits and teachers; what is there is never recomputed.

    Args:
        overwrite: start from nothing; what is there goes when the members and the data are known to fit.

    Returns:
        How many records were added (0: it was up to date).

    Raises:
        EdistillError: the folder holds a cache of other data, views, members or storage; members disagree in
            their classes; an output is not finite; a row does not decode.
    """
    numbers = task == "regression"
    for teacher in teachers:
        kinds = {plan.source.kind for plan in splits.values()}
        if "pixels" in kinds and teacher.member.preprocessing is None:
            raise EdistillError(
                f"Member {teacher.member.name} does not say how pixels become its input. Set teachers.preprocessing "
                "in edistill.toml, for instance { mean = [0.5], std = [0.5], size = [28, 28] }."
            )
    found = {name: plan.facts() for name, plan in splits.items()}
    members = [teacher.member for teacher in teachers]
    storage = {"batch_size": batch_size, "device": device.type, "dtype": "float32", "floor": FLOOR}
    if is_cache(folder) and not overwrite:
        before = Manifest.load(folder)
        members = [as_recorded(before.members, member, {split.kind for split in found.values()}) for member in members]
        manifest = _extended(folder, before, task, dtype, storage, found, members)
        for name, plan in splits.items():
            refuse_other_making(folder, name, plan, manifest)
            refuse_other_sizes(name, plan, members, manifest)
            if manifest.holds(name):  # first, since a member answers other inputs otherwise too
                check_samples(folder, name, plan.source, plan.view, plan.seed, plan.count)
        known = manifest.classes if manifest.answers else None
        modules = open_modules(splits, teachers, known, progress)
        stored = {name: inputs_of_first_view(folder, manifest, name) for name in manifest.splits.keys() & splits.keys()}
        classes = probe(splits, members, modules, numbers, known, partial(refuse_changed, folder, manifest), stored)
        needed = [key for key in keys(splits, members) if key not in manifest.records]
        if not needed and all(key.path(folder).is_file() for key in manifest.records):
            if manifest != before:  # a member that failed is gone
                manifest.save(folder)
            clean(folder)  # after a pass that died when it was all but done
            return 0
        manifest = replace(manifest, classes=classes)
    else:
        for name, plan in splits.items():
            refuse_other_sizes(name, plan, members, None)
        modules = open_modules(splits, teachers, None, progress)
        classes = probe(splits, members, modules, numbers, classes=None)
        if overwrite:
            clear_folder(folder, FILES, last=NAME)
        caching = {**storage, "versions": library_versions()}
        manifest = Manifest(task, dtype, classes, tuple(members), found, {}, caching)
    writer = Writer(folder, manifest)
    there = len(writer.manifest.records)
    for module in modules.values():
        module.to(device)
    panel = Panel(members, modules, batch_size, device, workers, progress)
    for name, plan in splits.items():
        todo = writer.pending(list(keys({name: plan}, members)))
        if not todo:
            writer.drop_parts(name)
            writer.drop_parts(inputs_place(name))
        else:
            keep_samples(folder, name, plan.source, plan.view, plan.seed, plan.count, members[0].preprocessing)
            views = sorted({key.view for key in todo})
            inputs = push_inputs(writer, name, plan, views, panel)
            _cache_split(writer, name, plan, todo, panel, inputs)
    return len(writer.manifest.records) - there


def _extended(
    folder: Path,
    manifest: Manifest,
    task: str,
    dtype: str,
    storage: Mapping[str, Any],
    found: Mapping[str, Split],
    members: Sequence[Member],
) -> Manifest:
    """The manifest with new members and splits added, after everything it already says has been compared.

    What failed in its first pass, a member or a split, may be taken away or replaced: its errors ask for that.
    """
    if not manifest.answers:  # a first pass that ran out of memory goes on with smaller batches, or another dtype
        if (manifest.dtype, manifest.caching["batch_size"]) != (dtype, storage["batch_size"]):
            drop_parts(folder)
            for name in manifest.splits:
                manifest = _without_inputs(folder, manifest, name)
        manifest = replace(manifest, dtype=dtype, caching={**manifest.caching, **storage})
    for what, there, here in (
        ("task", manifest.task, task),
        ("cache.dtype", manifest.dtype, dtype),
        ("cache.batch-size", manifest.caching["batch_size"], storage["batch_size"]),
    ):
        if there != here:
            raise EdistillError(
                f"{folder} was made with {what} = {there!r}, but the settings say {here!r}. Set {what} to {there!r}, "
                "name another output.cache, or run edistill cache-logits --overwrite."
            )
    for name in manifest.splits.keys() & found.keys():
        if manifest.holds(name):
            refuse_other_data(folder, name, manifest.splits[name], found[name])
        elif manifest.splits[name] != found[name]:
            drop_parts(folder, name)
            drop_samples(folder, name)
            manifest = _without_inputs(folder, manifest, name)
    now = {member.name: member for member in members}
    for member in manifest.members:
        if now.get(member.name) != member and manifest.unfinished(member.name):
            manifest = drop_member(folder, manifest, member.name)
    refuse_other_members(folder, manifest.members, members)
    kept = {name: split for name, split in manifest.splits.items() if name not in found or manifest.holds(name)}
    return replace(manifest, members=tuple(members), splits={**found, **kept})


def _without_inputs(folder: Path, manifest: Manifest, split: str) -> Manifest:
    for key in manifest.pushed_views(split):
        manifest = drop_inputs(folder, manifest, key)
    return manifest


def _cache_split(
    writer: Writer,
    name: str,
    plan: SplitPlan,
    todo: Sequence[RecordKey],
    panel: Panel,
    inputs: StoredInputs | None,
) -> None:
    form = writer.manifest.format
    by_name = {member.name: member for member in panel.members}
    cut = blocks(len(plan.source), panel.batch_size)
    missing = {block: writer.missing(block, todo) for block in cut}
    done = sum(b.stop - b.start for b, columns in missing.items() if not columns)
    panel.progress.start(f"caching {name}", total=len(plan.source), unit="rows", done=done)
    # rows that miss the same columns go through one loader; only a pass resumed with other members has several
    for columns, group in itertools.groupby(cut, key=lambda block: missing[block]):
        if not columns:
            continue
        wanted = list(group)
        views = sorted({key.view for key in columns})
        using = [by_name[m] for m in dict.fromkeys(key.member for key in columns)]
        preprocessings = list(dict.fromkeys(member.preprocessing for member in using))
        batched = [batch for block in wanted for batch in block.batches(panel.batch_size)]
        cut_rows = [list(batch) for batch in batched]
        shown = shown_of(plan, inputs, views, preprocessings)
        stream = zip(batched, batches(shown, cut_rows, stack, panel.workers, panel.device), strict=True)
        for block in wanted:
            outputs: dict[RecordKey, list[NDArray[np.float32]]] = {key: [] for key in columns}
            for rows, seen in itertools.islice(stream, len(block.batches(panel.batch_size))):
                on_device = [x.to(panel.device, non_blocking=True) for x in seen]
                for key in columns:
                    member = by_name[key.member]
                    at = views.index(key.view) * len(preprocessings) + preprocessings.index(member.preprocessing)
                    raw = forward(panel.modules[key.member], on_device[at], member, f"at row {rows[0]} of {name}")
                    outputs[key].append(to_outputs(raw, member, name, rows))
                panel.progress.advance(len(rows))
            writer.put(block, {key: form.encode(np.concatenate(parts)) for key, parts in outputs.items()})
    ask_again(writer, name, plan, todo, panel, inputs)
    check_meaning(writer, name, plan.source, todo, by_name, panel.batch_size)
    writer.join(todo, len(plan.source), panel.batch_size)
    panel.progress.finish()
