"""The pass: sources × teachers → cache. Each row is decoded once, each view rendered once for all members that
share a preprocessing, and each member's outputs go to its own record."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from ensemble_distill.cache.manifest import (
    FILES,
    NAME,
    Manifest,
    Split,
    refuse_other_data,
    refuse_other_members,
)
from ensemble_distill.cache.records import decode, encode
from ensemble_distill.cache.writer import Column, Writer, blocks, drop_member, record_path
from ensemble_distill.data.replay import check_samples, drop_samples, keep_samples
from ensemble_distill.data.source import Array, Source, View
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.files import clear_folder
from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.teachers.class_order import check_class_order
from ensemble_distill.teachers.logits import FLOOR
from ensemble_distill.teachers.moments import check_units
from ensemble_distill.teachers.outputs import forward, to_outputs
from ensemble_distill.teachers.teacher import Teacher

PROBE_TOLERANCE = 0.02  # of a probability: float16 records and another batch's shape stay far below


@dataclass(frozen=True)
class SplitPlan:
    """One split to cache: its rows, and the views to render of each."""

    source: Source
    view: View
    transform: str
    seed: int
    count: int

    def facts(self) -> Split:
        return Split(
            rows=len(self.source),
            digest=self.source.digest,
            digest_scope=self.source.digest_scope,
            kind=self.source.kind,
            transform=self.transform,
            seed=self.seed,
            labels=self.source.labels is not None,
        )


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
    if (folder / NAME).is_file() and not overwrite:
        before = Manifest.load(folder)
        manifest = _extended(folder, before, task, dtype, storage, found, members)
        for name, plan in splits.items():
            if manifest.holds(name):  # first, since a member answers other inputs otherwise too
                check_samples(folder, name, plan.source, plan.view, plan.seed, plan.count)
        modules = {teacher.member.name: teacher.build() for teacher in teachers}
        known = manifest.classes if manifest.records else None
        classes = _probe(splits, members, modules, numbers, known, partial(_refuse_changed, folder, manifest))
        needed = [key for key in _keys(splits, members) if key not in manifest.records]
        if not needed and all(_record_exists(folder, key) for key in manifest.records):
            if manifest != before:  # a member that failed is gone
                manifest.save(folder)
            shutil.rmtree(folder / "parts", ignore_errors=True)  # of a pass that died when it was all but done
            return 0
        manifest = replace(manifest, classes=classes)
    else:
        modules = {teacher.member.name: teacher.build() for teacher in teachers}
        classes = _probe(splits, members, modules, numbers, classes=None)
        if overwrite:
            clear_folder(folder, FILES, last=NAME)
        caching = {**storage, "versions": library_versions()}
        manifest = Manifest(task, dtype, classes, tuple(members), found, {}, caching)
    writer = Writer(folder, manifest)
    there = len(writer.manifest.records)
    for module in modules.values():
        module.to(device)
    for name, plan in splits.items():
        columns = [(m.name, v) for m in members for v in range(plan.count)]
        todo = writer.pending(name, columns)
        if not todo:
            writer.drop_parts(name)
        else:
            keep_samples(folder, name, plan.source, plan.view, plan.seed, plan.count, members[0].preprocessing)
            _cache_split(writer, name, plan, todo, members, modules, batch_size, device, workers, progress)
    return len(writer.manifest.records) - there


def _keys(splits: Mapping[str, SplitPlan], members: Sequence[Member]) -> Iterator[str]:
    for name, plan in splits.items():
        for member, view in itertools.product(members, range(plan.count)):
            yield f"{name}/{member.name}/{view}"


def _record_exists(folder: Path, key: str) -> bool:
    split, member, view = key.rsplit("/", 2)
    return record_path(folder, split, member, int(view)).is_file()


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
    if not manifest.records:  # a first pass that ran out of memory goes on with smaller batches, or another dtype
        if (manifest.dtype, manifest.caching["batch_size"]) != (dtype, storage["batch_size"]):
            shutil.rmtree(folder / "parts", ignore_errors=True)
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
            shutil.rmtree(folder / "parts" / name, ignore_errors=True)
            drop_samples(folder, name)
    now = {member.name: member for member in members}
    for member in manifest.members:
        if now.get(member.name) != member and manifest.unfinished(member.name):
            manifest = drop_member(folder, manifest, member.name)
    refuse_other_members(folder, manifest.members, members)
    kept = {name: split for name, split in manifest.splits.items() if name not in found or manifest.holds(name)}
    return replace(manifest, members=tuple(members), splits={**found, **kept})


def _probe(
    splits: Mapping[str, SplitPlan],
    members: Sequence[Member],
    modules: Mapping[str, nn.Module],
    numbers: bool,
    classes: tuple[str, ...] | None,
    compare: Callable[[str, Member, NDArray[np.float32]], None] | None = None,
) -> tuple[str, ...]:
    """Run the first row through every member, so that what cannot work fails before the pass, and find the
    class names; there are none where the members predict numbers.

    Args:
        compare: is given a split, a member and its outputs (1, W) there, to refuse those of a changed member.
    """
    counts: dict[str, int] = {}
    named: dict[str, tuple[str, ...]] = {}
    for name, plan in splits.items():
        if plan.source.classes is not None and not name.startswith("ood/"):
            named[name] = plan.source.classes
        item_plan = plan.view.plan(plan.seed, 0, 0, len(plan.source))
        items = [plan.source.item(row) for row in item_plan.rows]
        for member in members:
            x = item_plan.x(items, member.preprocessing)
            raw = forward(modules[member.name], torch.from_numpy(x)[None], member, f"on {name}")
            counts[member.name] = raw.shape[1]
            if numbers or compare is not None:
                outputs = to_outputs(raw, member, name, [0])
                if compare is not None:
                    compare(name, member, outputs)
    if numbers:
        return ()
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise EdistillError(
            f"The members disagree in their number of classes: {listed}. An ensemble shares its classes: remove the "
            "members of another task from teachers.path."
        )
    number = next(iter(counts.values()))
    if number < 2:
        raise EdistillError(
            f"The members return {number} output a row, and a classifier has one per class, two at least. Wrap a "
            "single logit z as (0, z) in a factory of your own (teachers.model)."
        )
    first = next(iter(named), None)
    for name, these in named.items():
        if first is not None and these != named[first]:
            different = [f"{a} / {b}" for a, b in itertools.zip_longest(named[first], these) if a != b][:3]
            raise EdistillError(
                f"data.{first} has {len(named[first])} classes and data.{name} has {len(these)}, or in another order "
                f"({', '.join(different)}). Give every split the same class folders."
            )
    names = classes or (named[first] if first is not None else numbered(number))
    if len(names) != number:
        where = f"data.{first}" if classes is None else "the cache"
        raise EdistillError(
            f"The members have {number} classes, but {where} has {len(names)} ({', '.join(names[:4])}, …). Give the "
            "data the members were trained on."
        )
    for name, plan in splits.items():
        labels = plan.source.labels
        if labels is None or not len(labels) or name.startswith("ood/"):
            continue
        if not np.issubdtype(labels.dtype, np.integer):
            raise EdistillError(f"data.{name} has labels of {labels.dtype}; classes are integers from 0.")
        if labels.min() < 0 or labels.max() >= number:
            bad = int(labels.max()) if labels.max() >= number else int(labels.min())
            raise EdistillError(
                f"data.{name} has label {bad}, but the members have classes 0 to {number - 1}. Give the data the "
                "members were trained on."
            )
    return names


def _refuse_changed(folder: Path, manifest: Manifest, split: str, member: Member, outputs: NDArray[np.float32]) -> None:
    """Weights are hashed, code is not: a member whose first answer is no longer the cached one has changed."""
    path = record_path(folder, split, member.name, 0)
    if f"{split}/{member.name}/0" not in manifest.records or not path.is_file():
        return
    try:
        cached = decode(np.load(path, mmap_mode="r", allow_pickle=False)[:1])
    except (OSError, ValueError, EOFError):
        return  # a damaged record: for the reader to tell
    if member.of_numbers:  # in standard deviations of the prediction, and as a share of the variance
        apart = (outputs - cached) / np.array([np.exp(0.5 * cached[0, 1]), 1.0])
        what = "its mean, in its own standard deviations, or its log-variance"
    else:
        now, then = (np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True)) for z in (outputs, cached))
        apart, what = now - then, "a probability"
    difference = float(np.abs(apart).max())
    if not difference <= PROBE_TOLERANCE:
        raise EdistillError(
            f"Member {member.name} answers row 0 of {split} otherwise than it did for {folder}: {what} differs "
            f"by {difference:.3f}. Its module's code or arguments have changed, or the record is damaged (edistill "
            "verify). Put them back, or run edistill cache-logits --overwrite."
        )


def library_versions() -> dict[str, str]:
    """Of the libraries that outputs depend on."""
    return {name: version(name) for name in ("torch", "timm", "numpy", "pillow")}


def numbered(count: int) -> tuple[str, ...]:
    """What classes are called where the data has no names for them."""
    return tuple(str(k) for k in range(count))


class _Rendered(Dataset[list[Array]]):
    """Row to its inputs: for each view, for each distinct preprocessing. Runs in the loader's processes."""

    def __init__(self, plan: SplitPlan, views: Sequence[int], preprocessings: Sequence[Preprocessing | None]):
        self.plan, self.views, self.preprocessings = plan, views, preprocessings

    def __len__(self) -> int:
        return len(self.plan.source)

    def __getitem__(self, row: int) -> list[Array]:
        source = self.plan.source
        own = source.item(row)
        inputs = []
        for view in self.views:
            plan = self.plan.view.plan(self.plan.seed, view, row, len(source))
            items = [own, *(source.item(other) for other in plan.rows[1:])]
            inputs += [plan.x(items, to) for to in self.preprocessings]
        return inputs


def _stack(rows: list[list[Array]]) -> list[Tensor]:
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]


def _cache_split(
    writer: Writer,
    name: str,
    plan: SplitPlan,
    todo: Sequence[Column],
    members: Sequence[Member],
    modules: Mapping[str, nn.Module],
    batch_size: int,
    device: torch.device,
    workers: int,
    progress: Progress,
) -> None:
    by_name = {member.name: member for member in members}
    cut = blocks(len(plan.source), batch_size)
    missing = {block: writer.missing(name, block, todo) for block in cut}
    done = sum(b.stop - b.start for b, columns in missing.items() if not columns)
    progress.start(f"caching {name}", total=len(plan.source), unit="rows", done=done)
    # rows that miss the same columns go through one loader; only a pass resumed with other members has several
    for columns, group in itertools.groupby(cut, key=lambda block: missing[block]):
        if not columns:
            continue
        wanted = list(group)
        views = sorted({view for _, view in columns})
        using = [by_name[m] for m in dict.fromkeys(m for m, _ in columns)]
        preprocessings = list(dict.fromkeys(member.preprocessing for member in using))
        batched = [batch for block in wanted for batch in block.batches(batch_size)]
        cut_rows = [list(batch) for batch in batched]
        loaded = batches(_Rendered(plan, views, preprocessings), cut_rows, _stack, workers, device)
        stream = zip(batched, loaded, strict=True)
        for block in wanted:
            outputs: dict[Column, list[NDArray[np.float32]]] = {column: [] for column in columns}
            for rows, inputs in itertools.islice(stream, len(block.batches(batch_size))):
                on_device = [x.to(device, non_blocking=True) for x in inputs]
                for member_name, view in columns:
                    member = by_name[member_name]
                    at = views.index(view) * len(preprocessings) + preprocessings.index(member.preprocessing)
                    raw = forward(modules[member_name], on_device[at], member, f"at row {rows[0]} of {name}")
                    outputs[member_name, view].append(to_outputs(raw, member, name, rows))
                progress.advance(len(rows))
            writer.put(name, block, {c: encode(np.concatenate(o), writer.manifest.record) for c, o in outputs.items()})
    _check_meaning(writer, name, plan.source, todo, by_name, batch_size)
    writer.join(name, todo, len(plan.source), batch_size)
    progress.finish()


def _check_meaning(
    writer: Writer,
    name: str,
    source: Source,
    todo: Sequence[Column],
    members: Mapping[str, Member],
    batch_size: int,
) -> None:
    """Refuse a member whose classes are plainly in another order than the data's, or whose numbers are in another
    unit, before its records count."""
    if source.labels is None or name.startswith("ood/"):
        return
    classes = writer.manifest.classes
    for column in todo:
        if column[1] != 0:
            continue
        answers = ((block, decode(r)) for block, r in writer.written(name, column, blocks(len(source), batch_size)))
        if classes:
            confusion = np.zeros((len(classes), len(classes)), np.int64)
            for block, logits in answers:
                np.add.at(confusion, (source.labels[block.start : block.stop], logits.argmax(1)), 1)
            check_class_order(column[0], confusion, classes)
        else:
            means = np.concatenate([moments[:, 0] for _, moments in answers])
            check_units(column[0], means, source.labels, members[column[0]].units)
