"""A few rows through every member, so that what cannot work fails before the pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import StoredInputs, mapped
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.caching.seen import Rendered, normalized, stack
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.rendition import pushes
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, numbered
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.tasks.checks.remedies import remedy
from ensemble_distill.teachers.outputs import forward, to_outputs
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.teachers.trial import tried

PROBE_TOLERANCE = 0.02  # of a probability: float16 records and another batch's shape stay far below


def open_modules(
    splits: Mapping[str, SplitPlan],
    teachers: Sequence[Teacher],
    classes: tuple[str, ...] | None,
    progress: Progress,
) -> dict[str, nn.Module]:
    """Every member's module by its name, tried on a few rows of the split that has most; see `tried`.

    Args:
        classes: names that are known already.
    """
    name = max(splits, key=lambda split: (not split.startswith("ood/"), len(splits[split].source)))
    plan, number = splits[name], _count_classes(splits, classes)
    rows = some_rows(len(plan.source))
    preprocessings = list(dict.fromkeys(teacher.member.preprocessing for teacher in teachers))
    rendered = Rendered(plan, [0], preprocessings)
    shown = stack([rendered[row] for row in rows])
    modules = {}
    for teacher in teachers:
        member, x = teacher.member, shown[preprocessings.index(teacher.member.preprocessing)]
        modules[member.name], told = tried(teacher.build(), x, member, name, rows, number)
        if told is not None:
            progress.note(told)
    return modules


def _count_classes(splits: Mapping[str, SplitPlan], classes: tuple[str, ...] | None) -> int | None:
    """How many classes the data has: as many as it names or, where it names none, as its labels count."""
    sources = [plan.source for name, plan in splits.items() if not name.startswith("ood/")]
    named = [len(source.classes) for source in sources if source.classes is not None]
    if classes or named:
        return len(classes) if classes else named[0]
    labels = [source.labels for source in sources if source.labels is not None]
    return max((int(y.max()) + 1 for y in labels if len(y) and np.issubdtype(y.dtype, np.integer)), default=None)


def probe(
    splits: Mapping[str, SplitPlan],
    members: Sequence[Member],
    modules: Mapping[str, nn.Module],
    numbers: bool,
    classes: tuple[str, ...] | None,
    compare: Callable[[str, Member, NDArray[np.float32]], None] | None = None,
    stored: Mapping[str, StoredInputs | None] | None = None,
) -> tuple[str, ...]:
    """Run the first row through every member, so that what cannot work fails before the pass, and find the
    class names; there are none where the members predict numbers.

    Args:
        compare: is given a split, a member and its outputs (1, W) there, to refuse those of a changed member.
        stored: of splits whose views push, the inputs that outputs are of; without them nothing is compared there.
    """
    counts: dict[str, int] = {}
    named: dict[str, tuple[str, ...]] = {}
    for name, plan in splits.items():
        if plan.source.classes is not None and not name.startswith("ood/"):
            named[name] = plan.source.classes
        item_plan = plan.view.plan(plan.seed, 0, 0, len(plan.source))
        items = [plan.source.item(row) for row in item_plan.rows]
        inputs = (stored or {}).get(name)
        comparable = inputs is not None or not pushes(plan.view)
        for member in members:
            x = (
                item_plan.x(items, member.preprocessing)
                if inputs is None
                else normalized(inputs.read(0, 0), plan.source.kind, member.preprocessing)
            )
            raw = forward(modules[member.name], torch.from_numpy(x)[None], member, f"on {name}")
            counts[member.name] = raw.shape[1]
            if numbers or compare is not None:
                outputs = to_outputs(raw, member, name, [0])
                if compare is not None and comparable:
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
            f"The members return {number} output a row, and a classifier has one per class, two at least: of a single "
            f"logit z, (0, z). {remedy(members[0], 'out * out.new_tensor([0, 1])')}"
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


def refuse_changed(folder: Path, manifest: Manifest, split: str, member: Member, outputs: NDArray[np.float32]) -> None:
    """Weights are hashed, code is not: a member whose first answer is no longer the cached one has changed."""
    key = RecordKey(split, member.name, 0)
    path = key.path(folder)
    if key not in manifest.records or not path.is_file():
        return
    try:
        cached = manifest.format.decode(mapped(path, manifest.format.record, manifest.splits[split].rows)[:1])
    except EdistillError:
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
