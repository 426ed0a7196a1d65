"""Checking a settings file against this folder: everything that a command would refuse, not only the first problem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_distill.cache.manifest import Manifest, refuse_other_data, refuse_other_members
from ensemble_distill.cache.reader import refuse_unknown
from ensemble_distill.caching.complete import members_as_recorded
from ensemble_distill.caching.decoding import bytes_to_store, to_store
from ensemble_distill.caching.forecast import forecast
from ensemble_distill.caching.grouping import groups_told
from ensemble_distill.caching.idle import nothing_to_decode
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.probe import open_members, probe
from ensemble_distill.caching.storing import samples_of
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.several import held
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import AnyPreprocessing, Several, named_in, split_key
from ensemble_distill.methods.method import Method
from ensemble_distill.runtime.disk import refuse_unwritable
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.words import bytes_told, counted
from ensemble_distill.settings.idle import is_given
from ensemble_distill.setup.members import look
from ensemble_distill.students.bodies import build_body, feature_count
from ensemble_distill.students.per_head import normalizes_batches
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.streamed import Room, groups
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.asked import Among
from ensemble_distill.training.idle import IdleFacts, tell_idle_training
from ensemble_distill.training.loop import largest
from ensemble_distill.training.order import Order, afforded
from ensemble_distill.training.plateau import refuse_no_validation
from ensemble_distill.training.refusals import (
    refuse_bodiless,
    refuse_broken,
    refuse_fewer_tokens,
    refuse_one_member,
    refuse_temperature,
    refuse_unlabeled,
)
from ensemble_distill.training.student import begin_among
from ensemble_distill.workspace.learned import can_validate
from ensemble_distill.workspace.splits import class_names, refuse_unlike, student_preprocessing
from ensemble_distill.workspace.training import open_asked
from ensemble_distill.workspace.workspace import Workspace, sources_of


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        what: the key or the part of the file.
        told: what was found, or the problem and its remedy.
        problem: whether there is one.
    """

    what: str
    told: str
    problem: bool = False


@dataclass
class Examined:
    """Everything found on the way; None or empty where there was a problem."""

    checks: list[Check] = field(default_factory=list)
    plans: dict[str, SplitPlan] = field(default_factory=dict)
    members: list[Answering] = field(default_factory=list)
    room: Room = field(default_factory=Room)  # memory for the members' weights
    groups: list[list[Answering]] = field(default_factory=list)  # those that a pass runs together
    method: tuple[Method, Any] | None = None
    taken: AnyPreprocessing | None = None  # the preprocessing of the student's body
    body: Any = None
    weights: int = 0  # bytes of the finished student's; 0 if it could not be built
    task: Task | None = None  # what the members answer
    cached: bool = False  # whether the cache is up to date
    records: int = 0  # bytes of the records of all splits
    to_decode: dict[str, int] = field(default_factory=dict)  # bytes of decoded pictures left to store, by split

    def ok(self, what: str, told: str) -> None:
        self.checks.append(Check(what, told))

    def lacks(self, what: str) -> bool:
        """Whether this key has a problem."""
        return any(check.problem and check.what == what for check in self.checks)

    @contextmanager
    def looking(self, what: str) -> Iterator[None]:
        """Record an EdistillError of the block as a problem, and continue."""
        try:
            yield
        except EdistillError as error:
            self.checks.append(Check(what, str(error), problem=True))


def examine(workspace: Workspace) -> Examined:
    """Check everything that commands would refuse.

    Members are built and run on a few rows; nothing is written or trained.
    """
    found = Examined()
    with found.looking("train.device"):
        found.ok("train.device", str(workspace.device))
    _splits(workspace, found)
    teachers = _teachers(workspace, found)
    _members(workspace, teachers, found)
    _records(workspace, found)
    _cache(workspace, teachers, found)
    _decoded(workspace, found)
    _writing(workspace, found)
    _student(workspace, found)
    _training(workspace, teachers, found)
    _groups(workspace, found)
    return found


def _splits(workspace: Workspace, found: Examined) -> None:
    plans: dict[str, SplitPlan] = {}
    if not workspace.split_names:
        found.checks.append(Check("data", "There is no data. Set data.train, and data.validation and data.test.", True))
    for name in workspace.split_names:
        key = split_key(name)
        with found.looking(key):
            source = workspace.source(name)
            labels = source.labels
            source.item(0)
            plans[name] = workspace.split(name, source)
            remarks = "" if name.startswith("ood/") and labels is None else " ".join(source.remarks)
            what = f"{counted(len(source), 'row')} of {held(source)}, {'no ' if labels is None else ''}labels"
            found.ok(key, f"{what}. {remarks}" if remarks else what)
    if plans:
        with found.looking("data"):
            refuse_unlike(sources_of(plans))
            found.plans = workspace.splits(list(plans))
    if "train" not in workspace.split_names and workspace.split_names:
        found.checks.append(Check("data.train", "data.train is not set: nothing can be trained on. Set it.", True))


def _teachers(workspace: Workspace, found: Examined) -> list[Teacher]:
    path = Path(workspace.settings.teachers.path)
    with found.looking("teachers.path"):
        names = class_names(sources_of(found.plans), workspace.cached_names) if found.plans else None
        teachers = workspace.ensemble(names)
        names_told = first_few([one.member.name for one in teachers], 6)
        found.ok("teachers.path", f"{counted(len(teachers), 'member')}: {names_told}")
        return teachers
    told = found.checks[-1].told
    if path.is_dir():  # the other members' problems, besides the first one that was raised
        for one in look(path, workspace.trust):
            if one.problem is not None and one.problem not in told:
                found.checks.append(Check(f"teachers.path, {one.path.name}", one.problem, True))
    return []


def _members(workspace: Workspace, teachers: list[Teacher], found: Examined) -> None:
    """Whether each member can be built, and gives valid outputs for a few rows."""
    problems: dict[str, list[str]] = {}
    for teacher in teachers:
        try:
            teacher.open(workspace.task)
        except EdistillError as error:
            problems.setdefault(str(error), []).append(teacher.member.name)
    for told, names in problems.items():
        found.checks.append(Check(f"member {first_few(names)}", told, problem=True))
    if problems or not teachers or not found.plans:
        return
    with found.looking("members"):
        found.room = Room.of(torch.device("cpu") if found.lacks("train.device") else workspace.device)
        found.members = open_members(
            workspace.task, found.plans, teachers, workspace.cached_names, workspace.progress, found.room
        )
        found.ok("members", f"{len(found.members)} answer a few rows, each by its row alone")


def _records(workspace: Workspace, found: Examined) -> None:
    """The format and size of the records in a new cache."""
    if not found.members:
        return
    folder, settings = workspace.cache_folder, workspace.settings.cache
    with found.looking("cache.records"):
        none = Manifest(
            answer=workspace.task,
            dtype=settings.dtype or workspace.task.dtypes[0],
            members=tuple(member.member for member in found.members),
            splits={name: plan.facts() for name, plan in found.plans.items()},
        )
        settled = replace(none, answer=probe(folder, none, found.plans, found.members))
        asking = Asking(none.dtype, settings.batch_size, torch.device("cpu"), 0, workspace.progress)
        asking = replace(asking, records=settings.records, samples=settings.samples)
        drawn = samples_of(folder, settled, found.plans, asking)
        found.task = settled.settled
        found.records = sum(forecast(settled, found.plans, drawn).values())
        what = f"{settings.samples} drawn of {settled.settled.told}" if drawn else settled.settled.told
        found.ok("cache.records", f"{what}, {bytes_told(found.records)} of {counted(len(found.members), 'member')}")


def _cache(workspace: Workspace, teachers: list[Teacher], found: Examined) -> None:
    if not workspace.has_cache:
        found.ok("output.cache", f"none yet in {workspace.cache_folder}")
        return
    with found.looking("output.cache"):
        manifest = Manifest.load(workspace.cache_folder)
        members = members_as_recorded(manifest, found.plans, [teacher.member for teacher in teachers])
        if members:
            refuse_other_members(workspace.cache_folder, manifest.members, members)
        lacking = [member.name for member in members if member.name not in manifest.names]
        for name, plan in found.plans.items():
            if name in manifest.splits:
                refuse_other_data(workspace.cache_folder, name, manifest.splits[name], plan.facts())
            if manifest.views(name) < plan.count:
                lacking.append(name)
        found.cached = bool(members and found.plans) and not lacking
        told = f"of {counted(len(manifest.members), 'member')}"
        found.ok("output.cache", told + (f"; lacks {', '.join(lacking)}" if lacking else ", up to date"))


def _decoded(workspace: Workspace, found: Examined) -> None:
    if not workspace.settings.cache.decoded or not found.plans:
        return
    with found.looking("cache.decoded"):
        found.to_decode = bytes_to_store(workspace.cache_folder, found.plans, overwrite=False)
        found.cached = found.cached and not found.to_decode
        if idle := nothing_to_decode([plan.source for plan in found.plans.values()]):
            told = f"does nothing: {idle.why}"
        elif not found.to_decode:
            told = f"pictures of {', '.join(to_store(found.plans))} are stored"
        else:
            told = f"about {bytes_told(sum(found.to_decode.values()))}, of {', '.join(found.to_decode)}"
        found.ok("cache.decoded", told)


def _writing(workspace: Workspace, found: Examined) -> None:
    """Whether results may be written; a cache that is up to date is only read."""
    cache = {} if found.cached else {"output.cache": workspace.cache_folder}
    for key, folder in {**cache, "output.runs": Path(workspace.settings.output.runs)}.items():
        with found.looking(key):
            refuse_unwritable(folder, key)


def _groups(workspace: Workspace, found: Examined) -> None:
    """Whether the members fit into memory together on the device."""
    if not found.members or found.lacks("train.device"):
        return
    for member in found.members:
        member.to(workspace.device)
    found.groups = groups(found.members, (), found.room)
    if (told := groups_told(found.groups, found.room)) is not None:
        found.ok("memory", told)


def _student(workspace: Workspace, found: Examined) -> None:
    settings = workspace.settings
    with found.looking("train.method"):
        method, options = workspace.method
        found.method = method, options
        refuse_temperature(workspace.task, options)
        train = found.plans.get("train")
        if train is not None:
            labeled = train.source.labels is not None
            refuse_unlabeled(settings.train.method, method, options, settings.method, labeled)
        found.ok("train.method", settings.train.method)
    with found.looking("student.model"):
        refuse_bodiless(settings.student)
        shape = _input_shape(workspace, found)
        assert settings.student.model is not None
        if shape is None:
            found.ok("student.model", "not built: its input is not known before the members and the data are")
            return
        several = named_in(found.taken)
        found.body = build_body(settings.student.model, settings.student.kwargs, shape, encoding=several)
        features = feature_count(found.body, shape, settings.student.model, encoding=several)
        refuse_fewer_tokens(found.body, several, settings.student.model)
        size = sum(parameter.numel() for parameter in found.body.parameters())
        given = f"an input {list(shape)}"
        if isinstance(several, Several):
            given = ", ".join(f"{slot.name} {list(slot.shape)}" for slot in several.slots)
        found.ok("student.model", f"{size:,} parameters, {features:,} features of {given}")


def _training(workspace: Workspace, teachers: list[Teacher], found: Examined) -> None:
    """What training refuses besides, as far as it is known without a cache."""
    plan, task = found.plans.get("train"), found.task
    if found.method is None or found.lacks("train.method") or workspace.settings.student.model is None:
        return
    with found.looking("train"):
        asked = open_asked(workspace, overwrite=False, or_chain=True)
        if plan is None or task is None:
            return
        validation, only = found.plans.get("validation"), asked.train.teacher
        refuse_no_validation(asked.train, validation is not None and can_validate(validation, asked.needs))
        names = [one.member.name for one in teachers]
        if only is not None:
            refuse_unknown(only, names, asked.teachers.path)
        names = names if only is None else [only]
        refuse_one_member(asked.train.method, asked.method, names, only)
        if found.lacks("student.model"):
            return
        rows = [plan.rows().inputs(row, [0], [found.taken])[0] for row in some_rows(len(plan.source))]
        among = Among(task, tuple(names), teachers, plan.source, found.taken)
        nothing = np.zeros((1, len(names), task.width))  # a unit is of no account here
        with torch.random.fork_rng(devices=[]):
            begun = begin_among(
                asked, among, torch.from_numpy(np.stack(rows)), lambda weights: task.student_family(nothing, None)
            )
        order = Order(len(plan.source), plan.count, asked.train.batch_size, asked.train.seed)
        steps = asked.train.epochs * order.steps_per_epoch
        asked = replace(asked, options=asked.method.timed(asked.options, steps))
        stages = afforded(asked.method.stages(asked.options, len(names)), steps)
        refuse_broken(asked.train.method, stages, begun.student, begun.architecture, begun.start is not None)
        found.weights = largest(begun.student, stages)
        normalizes = any(map(normalizes_batches, begun.student.modules()))
        facts = IdleFacts(asked.train, sources_of(found.plans), asked.method, asked.options, stages, normalizes, steps)
        tell_idle_training(facts, partial(is_given, workspace.settings), Silent())


def _input_shape(workspace: Workspace, found: Examined) -> tuple[int, ...] | None:
    """The shape (C, H, W) or (F,) of the student's input; None without members or data.

    Raises:
        EdistillError: the rows need preprocessing, and neither settings nor members state it.
    """
    plan = found.plans.get("train") or next(iter(found.plans.values()), None)
    if plan is None or not found.members:
        return None
    members = [asked.member for asked in found.members]
    asked = workspace.settings.student.preprocessing
    found.taken = student_preprocessing(asked, members, plan.source)
    return tuple(plan.rows().inputs(0, [0], [found.taken])[0].shape)
