"""The pass: sources × teachers → cache.

What is refused is refused first. Then each split is brought up to date: the inputs of views that push, and each
member's answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble_distill.cache.manifest import FILES, NAME, Manifest, is_cache
from ensemble_distill.cache.record_key import inputs_place
from ensemble_distill.cache.shared_writer import open_writer
from ensemble_distill.cache.writer import Writer, clean, drop_drawn
from ensemble_distill.caching.answers import cache_answers
from ensemble_distill.caching.complete import is_whole, keys, teachers_as_recorded
from ensemble_distill.caching.decoding import (
    bytes_to_store,
    refuse_no_room_to_store,
    store_pictures,
    tell_to_store,
)
from ensemble_distill.caching.extending import extended
from ensemble_distill.caching.forecast import refuse_no_room, tell_pass
from ensemble_distill.caching.grouping import Turns, batches, groups_of, noting, tell_groups
from ensemble_distill.caching.loading import with_workers
from ensemble_distill.caching.panel import Asking, Panel, wanted
from ensemble_distill.caching.probe import open_members, probe
from ensemble_distill.caching.pushing import push_inputs, refuse_other_making, refuse_other_sizes
from ensemble_distill.caching.replay import check_samples, keep_samples
from ensemble_distill.caching.storing import samples_of, tell_drawn
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.facts import AnyPreprocessing
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.files import clear_folder
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.versions import library_versions
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.checks.logits import FLOOR
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.as_held import as_held
from ensemble_distill.teachers.streamed import Room
from ensemble_distill.teachers.teacher import Teacher


def cache_outputs(
    folder: Path,
    task: type[Task],
    splits: Mapping[str, SplitPlan],
    teachers: Sequence[Teacher],
    asking: Asking,
    overwrite: bool = False,
) -> int:
    """Bring the cache in `folder` up to date with splits and teachers. Existing records are never recomputed.

    Args:
        overwrite: start from nothing; the old cache is deleted once members and data are known to fit.

    Returns:
        How many records, plus splits of decoded images, were added; 0 if it was up to date.

    Raises:
        EdistillError: the folder holds a cache of other data, views, members or storage; members disagree in their
            classes; an output is not finite; a row does not decode.
    """
    opened: list[Answering] = []  # filled in the first process only: members do not travel between processes
    room = Room.of(asking.device)

    def begun() -> tuple[Manifest, Mapping[str, int]] | None:
        return _begun(folder, task, splits, teachers, asking, overwrite, opened, room)

    ranks.wait()  # all processes have read the folder before the first one changes it
    if (found := ranks.of_first(begun)) is None:
        return store_pictures(folder, splits, asking)[1] if asking.decoded else 0
    settled, drawn = found
    members = opened or _opened_as_well(task, splits, teachers, settled, room)
    _move(members, asking)
    groups = groups_of(members, settled, room)
    writer = open_writer(folder, settled)  # writes the manifest first, which makes the folder a cache
    before = len(writer.manifest.records)
    if asking.decoded:
        splits, stored = store_pictures(folder, splits, asking)
        before -= stored
    asking = with_workers(asking, writer.manifest, splits, groups[0])
    turns = Turns(members, groups, splits, replace(asking, drawn=drawn), settled)
    for name, plan in splits.items():
        _cache_split(writer, name, plan, turns)
    return len(writer.manifest.records) - before


def _begun(
    folder: Path,
    task: type[Task],
    splits: Mapping[str, SplitPlan],
    teachers: Sequence[Teacher],
    asking: Asking,
    overwrite: bool,
    opened: list[Answering],
    room: Room,
) -> tuple[Manifest, Mapping[str, int]] | None:
    """Check everything that can be refused, then return what the pass begins with; None if there is nothing to do.

    Args:
        opened: receives the members.
        room: the memory for their weights.

    Returns:
        The manifest, and the ids to draw per position, for the splits that draw them.
    """
    there = Manifest.load(folder) if is_cache(folder) and not overwrite else None
    if there is not None:
        teachers = teachers_as_recorded(there, splits, teachers)
    asked = _asked(task, splits, teachers, asking)
    manifest = asked if there is None else extended(folder, there, asked)
    for name, plan in splits.items():
        refuse_other_making(folder, name, plan, manifest)
        refuse_other_sizes(name, plan, manifest)
        if manifest.holds(name):  # first: other inputs would also change the members' answers
            check_samples(folder, name, plan.rows(), plan.count)
    classes = manifest.classes if manifest.answers else None
    opened += open_members(task, splits, teachers, classes, asking.progress, room)
    settled = replace(manifest, answer=probe(folder, manifest, splits, opened))
    drawn = samples_of(folder, settled, splits, asking)
    pictures = bytes_to_store(folder, splits, overwrite) if asking.decoded else {}
    if there is not None and is_whole(folder, manifest, splits, manifest.members):
        if manifest != there:  # a failed member has been removed
            manifest.save(folder)
        refuse_no_room_to_store(folder, pictures, 0)
        tell_to_store(folder, pictures, splits, asking)
        clean(folder)  # a pass may have been killed just before its end
        return None
    _move(opened, asking)
    settled = noting(settled, batches(opened, splits, asking, there))
    asking = replace(asking, drawn=drawn)
    tell_drawn(settled, splits, drawn, asking.progress)
    disk = refuse_no_room(folder, settled, splits, asking)
    refuse_no_room_to_store(folder, pictures, disk[0])
    if overwrite:
        clear_folder(folder, FILES, last=NAME)
    for key, how in settled.drawn.items():  # of a first pass that ended before any answer; drawn otherwise now, or not
        if key.split in splits and drawn.get(key.split) != how.samples:
            settled = drop_drawn(folder, settled, key)
    tell_to_store(folder, pictures, splits, asking)
    groups = groups_of(opened, settled, room)
    tell_groups(settled, splits, groups, asking, room)
    if asking.forecast:
        tell_pass(settled, splits, groups, asking, disk, room)
    return settled, drawn


def _move(members: Sequence[Answering], asking: Asking) -> None:
    for member in members:
        member.to(asking.device)


def _opened_as_well(
    task: type[Task], splits: Mapping[str, SplitPlan], teachers: Sequence[Teacher], settled: Manifest, room: Room
) -> list[Answering]:
    """The members, opened in a process other than the first."""
    classes = settled.classes if settled.answers else None
    return open_members(task, splits, teachers_as_recorded(settled, splits, teachers), classes, Silent(), room)


def _asked(task: type[Task], splits: Mapping[str, SplitPlan], teachers: Sequence[Teacher], asking: Asking) -> Manifest:
    """The manifest of a cache made from nothing, before its members are asked."""
    return Manifest(
        answer=task,
        dtype=asking.dtype,
        members=tuple(teacher.member for teacher in teachers),
        splits={name: plan.facts() for name, plan in splits.items()},
        caching={
            "batch_size": asking.batch_size,
            "device": asking.device.type,
            "dtype": "float32",
            "floor": FLOOR,
            "versions": library_versions(),
        },
    )


def _cache_split(writer: Writer, name: str, plan: SplitPlan, turns: Turns) -> None:
    whole = turns.whole
    todo = writer.pending(list(keys({name: plan}, whole.facts)))
    if not todo:
        writer.drop_parts(name)
        writer.drop_parts(inputs_place(name))
        return
    if ranks.is_first():
        keep_samples(writer.folder, name, plan.rows(), plan.count, _to_replay(plan, whole))
    inputs = push_inputs(writer, name, plan, sorted({key.view for key in todo}), whole)
    if name in whole.asking.drawn:  # ids are drawn from all members together
        cache_answers(writer, name, plan, todo, whole, inputs)
    else:
        turns.each(todo, lambda panel, own: cache_answers(writer, name, plan, own, panel, inputs))


def _to_replay(plan: SplitPlan, panel: Panel) -> AnyPreprocessing | None:
    """The preprocessing of the inputs kept for replay.

    It is the first that any member wants; if none says any, rows are kept as they are held.
    """
    said = next((inputs.preprocessing for inputs in wanted(panel.members) if inputs.preprocessing is not None), None)
    return as_held(plan.source) if said is None else said
