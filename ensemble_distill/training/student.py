"""The student that a training starts from, and the configuration of the one it ends in."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ensemble_distill.cache.reader import Cache
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import Preprocessing
from ensemble_distill.methods.method import Method, Stage
from ensemble_distill.predictive import members_family
from ensemble_distill.predictive.gaussian import GaussianFamily
from ensemble_distill.predictive.protocol import Family
from ensemble_distill.runs.config import Provenance, StudentConfig
from ensemble_distill.runtime.spread import spread
from ensemble_distill.runtime.versions import library_versions
from ensemble_distill.settings import LastStageSettings, Settings
from ensemble_distill.starts.from_members import FromMembers
from ensemble_distill.starts.sharing import HEAD, share
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.students.bodies import build_bodies, build_body, each, feature_count, start_from
from ensemble_distill.students.last_stage import LastStage
from ensemble_distill.students.own_row import refuse_dependent_body
from ensemble_distill.students.split import last_stage_of
from ensemble_distill.students.student import Student
from ensemble_distill.tasks import task_from_json
from ensemble_distill.teachers.run import Pooled
from ensemble_distill.teachers.teacher import Teacher

FARTHEST = 1e4  # standard deviations that a target may lie from 0; there single precision resolves a thousandth of one
SAMPLED = 10_000  # training rows from which a target's center and scale are taken


def build_student(
    folder: Path,
    settings: Settings,
    method: Method,
    options: BaseModel,
    cache: Cache,
    plans: Mapping[str, SplitPlan],
    teachers: Sequence[Teacher],
    preprocessing: Preprocessing | None,
    shown: Tensor,
) -> tuple[StudentConfig, Student, FromMembers | None]:
    """The configuration of the finished student, the one-headed student that training starts from, and what sets its
    heads then, where they start from the members.

    Args:
        shown: (B, …), some training rows as the student sees them.
    """
    student, manifest = settings.student, cache.manifest
    assert student.model is not None
    shape = tuple(shown.shape[1:])
    starts = starting_members(settings, teachers)
    names = [teacher.member.name for teacher in starts]
    if student.from_members:
        _refuse_other_inputs(starts if isinstance(student.heads, tuple) else teachers, preprocessing)
    bodies = max(1, len(starts))
    body = build_bodies(bodies, student.model, student.kwargs, shape)
    for teacher, one in zip(starts, each(body), strict=False):  # without a start there is one body all the same
        start_from(one, teacher.build(), teacher.member.name)
    refuse_dependent_body(body, shown, student.model)
    stage = _last_stage(settings, each(body)[0])
    heads = method.heads(len(manifest.members))
    if student.compress is not None:
        _refuse_uncompressed(settings, stage)
    start = None
    if stage is not None and stage.adapted:
        start = _from_members(settings, method, heads, stage, cache, teachers, shape)
    weights = None if settings.train.teacher else settings.teachers.weights
    if weights is not None and len(weights) != len(manifest.members):
        raise EdistillError(
            f"teachers.weights has {len(weights)} values for {len(manifest.members)} members. Give one each."
        )
    architecture = Architecture(
        task=task_from_json({"task": manifest.task, "classes": manifest.classes}),
        model=_relative_spec(settings, folder),
        kwargs=student.kwargs,
        hidden=student.heads if isinstance(student.heads, tuple) else (),
        heads=heads,
        form=method.form,
        family=method.family(_in_reach(cache, settings.task, plans["train"].source.labels, method.needed(options))),
        kind=plans["train"].source.kind,
        shape=shape,
        preprocessing=preprocessing,
        average=settings.teachers.average,
        weights=weights,
        bodies=bodies,
        last_stage=stage,
    )
    provenance = Provenance(
        method=settings.train.method.rpartition(":")[2],
        options=options.model_dump(mode="json"),
        members=manifest.members,
        source=method.source,
        trained_on={name: manifest.splits[name].digest for name in plans},
        versions=library_versions(),
    )
    features = feature_count(body, shape, student.model)
    built = architecture.around(body, features)
    if _one_each(settings, method, stage, names, manifest.names):
        with torch.random.fork_rng(devices=[]):  # a trial
            first = method.stages(options, len(manifest.members))[0].start(copy.deepcopy(built))
        if first.heads.count == heads:
            architecture = replace(architecture, own_body=True)
            built = architecture.around(body, features)
    if student.share:
        _share(settings, built, [one for one in teachers if one.member.name in manifest.names], heads)
    return StudentConfig(architecture, provenance), built, start


def _one_each(
    settings: Settings, method: Method, stage: LastStage | None, bodies: Sequence[str], members: Sequence[str]
) -> bool:
    """Whether there is a body for each head: what the others' say of a member is little then, and costs as many weights
    again."""
    return (
        settings.student.from_members
        and stage is None
        and method.form == "heads"
        and method.heads(len(members)) == len(bodies) > 1
        and list(bodies) == list(members)
    )


def _share(settings: Settings, student: Student, teachers: Sequence[Teacher], heads: int) -> None:
    """Give the student the modules of its one teacher that `student.share` names."""
    if not teachers:
        raise EdistillError(
            f"student.share copies modules of the teacher, and {settings.teachers.path} is not there. Put it back."
        )
    if len(teachers) > 1:
        raise EdistillError(
            f"student.share copies modules of one teacher, and there are {len(teachers)}: "
            f"{first_few([teacher.member.name for teacher in teachers], 6)}. Choose one, --teacher "
            f"{teachers[0].member.name}."
        )
    if heads > 1:
        raise EdistillError(
            f"student.share is for students with one head, and {settings.train.method} makes {heads}. Leave it out."
        )
    if HEAD in settings.student.share and settings.task == "regression":
        raise EdistillError(
            f"student.share names {HEAD}, and the numbers that a student emits are in another unit than its teacher's. "
            "For regression share modules of the body alone."
        )
    (teacher,) = teachers
    module = teacher.build()
    root = module.student if isinstance(module, Pooled) else module
    share(student, root, f"member {teacher.member.name}", settings.student.share, teacher.member.class_order)


def _refuse_other_inputs(teachers: Sequence[Teacher], preprocessing: Preprocessing | None) -> None:
    """Raise EdistillError for members that see rows otherwise than the student: in it they would be somebody else."""
    for teacher in teachers:
        theirs = teacher.member.preprocessing
        if theirs != preprocessing:
            raise EdistillError(
                f"The student starts from {teacher.member.name}, whose preprocessing is {theirs}, and its own is "
                f"{preprocessing}. Start from members that share the student's (student.preprocessing), or leave the "
                "list in student.init out."
            )


def _last_stage(settings: Settings, body: nn.Module) -> LastStage | None:
    """Where heads begin in the body; None for heads on all of it. They start from their own members, and so need
    adapters to them, where `student.init` is a list."""
    heads = settings.student.heads
    if isinstance(heads, tuple):
        return None
    table = LastStageSettings.model_validate({}) if isinstance(heads, str) else heads
    adapted = settings.student.from_members
    for key, value in (("adapt-from", table.adapt_from), ("rank", table.rank), ("compress", table.compress)):
        if value is not None and not adapted:
            raise EdistillError(
                f"student.heads has {key} = {value!r}, which is for heads that start from their members' own last "
                'stages. List the members that the body starts from, student.init = ["member-00"], or leave it out.'
            )
    return LastStage(table.last_stage or last_stage_of(body), table.adapt_from, adapted, table.rank)


def _from_members(
    settings: Settings,
    method: Method,
    heads: int,
    stage: LastStage,
    cache: Cache,
    teachers: Sequence[Teacher],
    shape: tuple[int, ...],
) -> FromMembers:
    """What gives every head its own member's last stage; the members are bodies with a classifier."""
    members = cache.manifest.members
    if heads != len(members) or method.form != "heads":
        raise EdistillError(
            f"student.init is a list and student.heads a last stage, so every head starts from its own member, and "
            f"{settings.train.method} has no head for each of the {len(members)}. Use --method hydra, or another "
            "student.heads."
        )
    named = {teacher.member.name: teacher for teacher in teachers}
    student = settings.student
    assert student.model is not None
    splits = []
    for member in members:
        body = build_body(student.model, student.kwargs, shape)
        start_from(body, named[member.name].build(), member.name)
        splits.append(stage.split(body.eval()))
    start = FromMembers(splits)
    width = start.width(shape)
    if stage.rank is not None and stage.rank > len(members) * width:
        raise EdistillError(
            f"student.heads has rank = {stage.rank}, and the last stages of {len(members)} members are given "
            f"{len(members)} × {width} numbers: a bottleneck of more would say nothing more. Give at most "
            f"{len(members) * width}, or leave it out."
        )
    return start


def _refuse_uncompressed(settings: Settings, stage: LastStage | None) -> None:
    """Raise EdistillError for bodies that cannot be compressed."""
    given = f"student.compress is {settings.student.compress:g}"
    if settings.student.init is None:
        raise EdistillError(
            f"{given}, and it is members' layers that are compressed. Say which the body starts from, as in "
            'student.init = ["member-*"] for all of them, or leave it out.'
        )
    if stage is not None:
        raise EdistillError(
            f"{given}, and student.heads begin at {stage.at}: it is for whole bodies. Use heads = [], or "
            "leave it out and give student.heads a compress of its own."
        )
    if settings.student.share:
        raise EdistillError(f"{given}, and student.share copies modules as they are. Leave one of the two out.")


def starting_members(settings: Settings, teachers: Sequence[Teacher]) -> list[Teacher]:
    """The members whose weights the bodies start from, in the order of `student.init`."""
    init = settings.student.init
    named = {teacher.member.name: teacher for teacher in teachers}
    if init is None or isinstance(init, str):
        names = [] if init is None else [init]
    else:
        names = [name for pattern in init for name in _matching(named, pattern) or [pattern]]
    for name in names:
        if name not in named:
            there = f"the members are {', '.join(named)}" if named else f"{settings.teachers.path} is not there"
            several = f' For all that match, make it a list: ["{name}"].' if init == name and "*" in name else ""
            raise EdistillError(
                f"student.init is {name!r}, and {there}. Name a member that is, or put it back.{several}"
            )
        if names.count(name) > 1:
            raise EdistillError(f"student.init names {name} {names.count(name)} times. Name each member once.")
    if len(names) == len(named):  # so that head m, which imitates member m, has the body that is member m
        names.sort(key=list(named).index)
    return [named[name] for name in names]


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a pattern stands for; a name with [brackets] of its own stands for itself."""
    names = list(names)
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def refuse_broken(
    name: str, stages: Sequence[Stage], student: Student, architecture: Architecture, from_members: bool = False
) -> None:
    """Raise EdistillError when a method's stages do not end in the student that it promises: after the training the
    run could not be loaded."""
    total = sum(stage.share for stage in stages)
    if not stages or abs(total - 1) > 1e-6:
        raise EdistillError(f"{name} has {len(stages)} stages whose shares sum to {total:g}. They are to sum to 1.")
    with torch.random.fork_rng(devices=[]):  # a trial: the training itself starts from the same random numbers
        student = copy.deepcopy(student)  # and weights: a method is anyone's code, and may change them in place
        promised = student.formed(architecture.form, architecture.heads)
        frozen = student.frozen
        for index, stage in enumerate(stages):
            student = stage.start(student)
            if from_members and index == 0 and student.heads.count != architecture.heads:
                raise EdistillError(
                    f"Each of {architecture.heads} heads is to start from its own member, and stage {stage.name} of "
                    f"{name} has {student.heads.count}. Leave method.hinton-share out, or set it to 0."
                )
            if from_members and index == 0 and stage.fit is None:
                raise EdistillError(
                    f"Each head starts from its own member's last stage, and stage {stage.name} of {name} does not "
                    "solve for what stands behind it. Leave method.closed-form and method.hinton-share out."
                )
    if student.frozen != frozen:
        gone = ", ".join(module for module in frozen if module not in student.frozen)
        raise EdistillError(
            f"student.share freezes {gone}, and {name} would train it anew. Share others, or use --method ban, kd or "
            "supervised."
        )
    found, wanted = ({key: tuple(t.shape) for key, t in s.state_dict().items()} for s in (student, promised))
    if found != wanted:
        key = next(key for key in (*wanted, *found) if found.get(key) != wanted.get(key))
        raise EdistillError(
            f"{name} promises {architecture.heads} of form {architecture.form!r}, but its stages end in another "
            f"student: {key} is {found.get(key, 'absent')} and not {wanted.get(key, 'absent')}. Make `heads`, "
            "`form` and `stages` agree."
        )


def _in_reach(cache: Cache, task: str, labels: Array | None, needs: frozenset[str]) -> Family:
    """What a head emits: for numbers in units of what it is to learn, so that a fresh head is near it."""
    family = members_family(task)
    if not isinstance(family, GaussianFamily):
        return family
    if "teacher" in needs:
        records = cache.open("train")
        rows = spread(len(records), SAMPLED)
        outputs = records.read(rows).astype(np.float64)
        learned = outputs[..., 0].mean(1)
        # not the spread of the means alone: members that know little hardly move theirs, and a fresh head's variance
        # would be thousands of times too small
        variance = float(learned.var() + np.exp(outputs[..., 1].mean()))
    else:
        learned = np.asarray(labels, dtype=np.float64)
        variance = float(learned.var()) if np.ptp(learned) else 1.0
    center, scale = float(learned.mean()), math.sqrt(variance)
    if abs(center) > FARTHEST * scale:
        raise EdistillError(
            f"What the student is to learn lies at {center:.6g} and varies by {scale:.3g}: in single precision little "
            "is left of that. Take a constant off the targets, and off what the members return."
        )
    return GaussianFamily(center, scale)


def _relative_spec(settings: Settings, folder: Path) -> str:
    """student.model with its file relative to the run folder."""
    dumped = settings.model_dump(mode="json", context={"root": folder.absolute()})
    spec: str = dumped["student"]["model"]
    return spec
