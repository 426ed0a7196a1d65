"""A few rows through every member, so that what cannot work fails before the pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import Key, RecordKey
from ensemble_distill.cache.records import mapped
from ensemble_distill.caching.kept import Kept
from ensemble_distill.caching.panel import wanted
from ensemble_distill.caching.pushing import inputs_of_first_view, refuse_no_gradients
from ensemble_distill.caching.seen import Seen, seen
from ensemble_distill.data.folds import refuse_other_folds
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.rendition import pushes
from ensemble_distill.data.source import positions_of
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import HELD_OUT
from ensemble_distill.runtime.names import places
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import Answering, in_view
from ensemble_distill.teachers.held_out import AnswersHeldOut
from ensemble_distill.teachers.ready_made import Table
from ensemble_distill.teachers.streamed import Room, Streamed
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.teachers.together import in_common
from ensemble_distill.teachers.trial import Few, as_tried, tried
from ensemble_distill.teachers.viewed import Viewed, refuse_other_views

PROBE_TOLERANCE = 0.02  # in probability: float16 rounding and other batch shapes cause far less


def open_members(
    task: type[Task],
    splits: Mapping[str, SplitPlan],
    teachers: Sequence[Teacher],
    classes: tuple[str, ...] | None,
    progress: Progress,
    room: Room | None = None,
) -> list[Answering]:
    """Open every member, and try it on a few rows; see `tried`.

    The rows are from the largest split; held-out and OOD splits come last. With held-out rows, each member answers only
    its own fold.

    Args:
        classes: class names that are already known.
        room: the memory for their weights, in which not all may fit at once; None to keep all.
    """
    name = max(
        splits, key=lambda split: (split != HELD_OUT and not split.startswith("ood/"), len(splits[split].source))
    )
    plan, count = splits[name], _count(task, splits, classes)
    folds = None if HELD_OUT not in splits else splits[HELD_OUT].folds
    if folds is not None and (every := splits[HELD_OUT].all_folds) is not None:
        refuse_other_folds(every, [teacher.member.name for teacher in teachers])
    fold_of = places([teacher.member.name for teacher in teachers])
    rows, shown, members = some_rows(len(plan.source)), Seen(), list[Streamed]()
    for teacher in teachers:  # one by one, since not all may fit into memory
        asked = Streamed(partial(teacher.open, task, positions_of(plan.source)), room or Room())
        _refuse_unfit(asked.asked, splits)
        if asked.wants is not None and (0, asked.wants) not in shown:
            shown |= seen(plan.rows(), rows, [0], [asked.wants])
        few = Few(asked_as(asked, name, plan.transform, 0), rows, shown.get((0, asked.wants)))
        found, told = tried(asked.asked, few, count)
        asked.settle(partial(_settled, as_tried(found), fold_of[len(members)], folds))
        asked.common = in_common(asked.asked)
        members.append(asked)
        if told is not None:
            progress.note(told)
    return [asked.asked for asked in members] if room is None else [*members]


def _settled(
    as_tried: Callable[[Answering], Answering], fold: int, folds: NDArray[np.int64] | None, asked: Answering
) -> Answering:
    found = as_tried(asked)
    return found if folds is None else AnswersHeldOut(found, fold, folds)


def _refuse_unfit(asked: Answering, splits: Mapping[str, SplitPlan]) -> None:
    """Raise EdistillError for a member that does not fit the splits."""
    refuse_no_preprocessing(asked, splits)
    for split, one in splits.items():
        asked.meets("train" if split == HELD_OUT else split, one.source)
    refuse_no_gradients(splits, [asked])
    refuse_views_unseen(splits, [asked])


def refuse_no_preprocessing(asked: Answering, splits: Mapping[str, SplitPlan]) -> None:
    """Raise EdistillError for a member that wants pixels and does not say how they become its input."""
    pixels = next((plan.source for plan in splits.values() if plan.source.kind == "pixels"), None)
    if pixels is not None and asked.wants is not None and asked.wants.preprocessing is None:
        height, width, channels = pixels.item(0).x.shape
        half = ", ".join(["0.5"] * channels)
        raise EdistillError(
            f"Member {asked.member.name} does not say how pixels become its input. Set teachers.preprocessing in "
            f"edistill.toml, for pixels as they are {{ size = [{height}, {width}], mean = [{half}], std = [{half}] }} "
            "with the mean and std that it was trained with."
        )


def refuse_views_unseen(splits: Mapping[str, SplitPlan], members: Sequence[Answering]) -> None:
    """Raise EdistillError for a member that answers by row number and has no answers for the views of a split."""
    for name, plan in splits.items():
        for asked in members:
            if asked.wants is None and name != HELD_OUT:
                viewed = asked.viewed(name) if isinstance(asked, Table) else Viewed(asked.member.name)
                refuse_other_views(viewed, name, plan.transform, plan.seed, plan.count)


def asked_as(asked: Answering, split: str, transform: str, view: int) -> str:
    """The split that a member is asked about; for a member that answers by row number, with its view."""
    return split if asked.wants is not None or transform == "none" else in_view(split, view)


def _count(task: type[Task], splits: Mapping[str, SplitPlan], classes: tuple[str, ...] | None) -> int | None:
    """The number of classes or targets of the data: by its names or, if labels do not go by names, by its labels."""
    sources = [plan.source for name, plan in splits.items() if not name.startswith("ood/")]
    names = classes or next((source.classes for source in sources if source.classes is not None), None)
    if names and task.named:
        return len(names)
    labels = [source.labels for source in sources if source.labels is not None]
    return max((task.counted(y) for y in labels if len(y)), default=len(names) if names else None)


def probe(folder: Path, manifest: Manifest, splits: Mapping[str, SplitPlan], members: Sequence[Answering]) -> Task:
    """Settle the task of the cache, from the first row of each split through every member.

    Raises:
        EdistillError: a member fails, or answers differently than the cache says; or members and data do not fit.
    """
    task, widths = members[0].task, {}
    stored = {name: inputs_of_first_view(folder, manifest, name) for name in splits}
    here = {name: seen(plan.rows(stored[name]), [0], [0], wanted(members)) for name, plan in splits.items()}
    for asked in members:  # all questions to one member in a row, since not all may fit into memory
        for name, plan in splits.items():
            named = asked_as(asked, name, plan.transform, 0)
            outputs = asked.answers(named, [0], here[name].get((0, asked.wants)))
            widths[asked.member.name] = outputs.shape[-1]
            if stored[name] is not None or not pushes(plan.view):  # else the pass showed it a moved input
                refuse_changed(folder, manifest, RecordKey(name, asked.member.name, 0), outputs)
    known = manifest.answer if manifest.answers and isinstance(manifest.answer, Task) else None
    return task.found({name: plan.source for name, plan in splits.items()}, widths, known)


def refuse_changed(folder: Path, manifest: Manifest, key: RecordKey, outputs: NDArray[np.float32]) -> None:
    """Raise EdistillError for a member whose answer for row 0 is no longer the cached one.

    Weights are hashed but code is not, so its code may have changed.

    Args:
        outputs: the member's present answer for row 0, (1, *shape).
    """
    path = key.path(folder)
    if key not in manifest.records or not path.is_file():
        return
    try:
        kept = Kept(manifest, key, partial(_first, folder, manifest))
    except EdistillError:
        return  # a damaged record: the reader reports it
    silent, was_silent = (bool(np.isnan(said).all()) for said in (outputs, kept.said))
    if silent != was_silent:
        told = "it gives no answer now" if silent else "it gave no answer then"
    elif silent:
        return
    else:
        apart = kept.furthest(outputs)
        difference, what = manifest.answer.change(outputs, kept.said) if apart is None else (apart, "a probability")
        if difference <= PROBE_TOLERANCE:
            return
        told = f"{what} differs by {difference:.3f}"
    raise CacheError(
        f"Member {key.member} answers row 0 of {key.split} otherwise than it did for {folder}: {told}. Its module's "
        "code or arguments have changed, or the record is damaged (edistill verify). Put them back, or run edistill "
        "cache-logits --overwrite."
    )


def _first(folder: Path, manifest: Manifest, key: Key) -> NDArray[np.void]:
    """The first record, (1,). Raises EdistillError if the file does not hold such records."""
    return np.asarray(mapped(key.path(folder), manifest.format_of(key).record, manifest.splits[key.split].rows)[:1])
