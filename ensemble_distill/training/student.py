"""The student that a training starts from, and the architecture it ends in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_distill.data.source import positions_of
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import AnyPreprocessing, Named, difference, named_in, same_rows
from ensemble_distill.predictive.answered import those_who_answer
from ensemble_distill.predictive.protocol import Family
from ensemble_distill.runs.config import Provenance, StudentConfig
from ensemble_distill.runtime.spread import spread
from ensemble_distill.runtime.versions import library_versions
from ensemble_distill.settings import LastStageSettings, StudentSettings
from ensemble_distill.starts.bodies import started_bodies, starting_members
from ensemble_distill.starts.from_members import FromMembers, from_members
from ensemble_distill.starts.sharing import HEAD, share
from ensemble_distill.students.architecture import Architecture, shares_of
from ensemble_distill.students.bodies import each, feature_count
from ensemble_distill.students.last_stage import LastStage
from ensemble_distill.students.own_row import refuse_dependent_body
from ensemble_distill.students.split import last_stage_of
from ensemble_distill.students.student import Student
from ensemble_distill.teachers.run import Pooled
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.asked import Among, Asked, Learned
from ensemble_distill.training.refusals import refuse_fewer_tokens

InReach = Callable[[Sequence[float] | None], Family]

SAMPLED = 10_000  # training rows that decide where a fresh head begins


@dataclass(frozen=True)
class Begun:
    """What a training starts from.

    Attributes:
        architecture: the finished student's.
        student: one-headed, as the first stage takes it.
        names: the members that its bodies come from.
        start: sets its heads from the members; None otherwise.
    """

    architecture: Architecture
    student: Student
    names: tuple[str, ...] = ()
    start: FromMembers | None = None


def begin_student(asked: Asked, learned: Learned, shown: Tensor) -> Begun:
    """Build the student that learns from a cache; see `begin_among`."""
    return begin_among(asked, learned.among, shown, partial(_in_reach, asked, learned))


def begin_among(asked: Asked, among: Among, shown: Tensor, in_reach: InReach) -> Begun:
    """Build the student, with the weights of the members it starts from.

    Args:
        shown: some training rows as the student sees them, (B, …).
        in_reach: returns the family of a head, given the members' weights, so that a fresh head begins near its target.

    Raises:
        EdistillError: the student cannot be built, or cannot start as the settings ask.
    """
    student, shape, members = asked.student, tuple(shown.shape[1:]), among.names
    positions, encoding = positions_of(among.source), named_in(among.preprocessing)
    assert student.model is not None
    _refuse_tied(asked)
    _refuse_no_positions(student, positions)
    _refuse_no_stages(student, encoding)
    named = {teacher.member.name: teacher for teacher in among.teachers}
    names = starting_members(student.init, list(named), asked.teachers.path)
    if student.from_members:
        seen = [named[name] for name in names] if isinstance(student.heads, tuple) else among.teachers
        _refuse_other_inputs(seen, among.preprocessing)
    builds = {name: named[name].build for name in names}
    body = started_bodies(student.model, student.kwargs, shape, builds, positions, encoding)
    refuse_fewer_tokens(body, encoding, student.model)
    refuse_dependent_body(body, shown, student.model, positions)
    stage = _last_stage(student, each(body)[0])
    _refuse_uncompressed(student, stage)
    start = None
    if stage is not None and stage.adapted:
        _refuse_fewer_heads(asked, len(members))
        builds = {name: named[name].build for name in members}
        start = from_members(stage, student.model, student.kwargs, shape, builds)
    architecture = _architecture(asked, among, in_reach, stage, shape, max(1, len(names)))
    features = feature_count(body, shape, student.model, positions, encoding)
    built = architecture.around(body, features)
    if _one_each(asked, stage, names, members):
        with torch.random.fork_rng(devices=[]):  # a trial leaves the random numbers of the training alone
            first = asked.method.stages(asked.options, len(members))[0].start(copy.deepcopy(built))
        if first.heads.count == architecture.heads:
            architecture = replace(architecture, own_body=True)
            built = architecture.around(body, features)
    if student.share:
        _share(asked, among, built, architecture.heads)
    return Begun(architecture, built, tuple(names), start)


def config_of(asked: Asked, learned: Learned, architecture: Architecture) -> StudentConfig:
    """The config of the finished student: its architecture and where it comes from."""
    manifest = learned.cache.manifest
    decisive = [*learned.splits, *(["validation"] if asked.train.sched == "plateau" else [])]
    provenance = Provenance(
        method=asked.train.method.rpartition(":")[2],
        options=asked.options.model_dump(mode="json"),
        members=manifest.members,
        source=asked.method.source,
        trained_on={name: manifest.splits[name].digest for name in decisive},
        versions=library_versions(),
        features=getattr(learned.splits["train"].source, "features", None),
        columns=getattr(learned.splits["train"].source, "columns", None),
    )
    return StudentConfig(architecture, provenance)


def _architecture(
    asked: Asked, among: Among, in_reach: InReach, stage: LastStage | None, shape: tuple[int, ...], bodies: int
) -> Architecture:
    """The architecture of the finished student."""
    student, members, method = asked.student, len(among.names), asked.method
    weights = weights_of(asked, among.names)
    if weights is not None and len(weights) != members:
        raise EdistillError(f"teachers.weights has {len(weights)} values for {members} members. Give one each.")
    relative = student.model_dump(mode="json", context={"root": asked.folder.absolute()})
    return Architecture(
        task=among.task,
        model=relative["model"],
        kwargs=student.kwargs,
        hidden=student.heads if isinstance(student.heads, tuple) else (),
        heads=method.heads(members),
        form=method.form,
        family=method.family(in_reach(weights)),
        kind=among.source.kind,
        shape=shape,
        preprocessing=among.preprocessing,
        average=asked.teachers.average,
        weights=weights,
        bodies=bodies,
        last_stage=stage,
        tied=student.tied,
    )


def weights_of(asked: Asked, names: Sequence[str]) -> tuple[float, ...] | None:
    """The weight of each of these members; None for equal weights."""
    return None if asked.train.teacher else asked.teachers.shares(names)


def _in_reach(asked: Asked, learned: Learned, weights: tuple[float, ...] | None) -> Family:
    """The family of a head, placed so that a fresh head begins near its target. Members of weight 0 are left out."""
    if learned.task.shares_output:  # a head emits what a member does: no rows to read
        return learned.task.student_family(None, None)
    if "teacher" not in asked.needs:
        return learned.task.student_family(None, learned.splits["train"].source.labels)
    records = learned.splits["train"].records
    rows, shares = np.arange(len(records)), shares_of(weights)
    part = slice(None) if shares is None else shares > 0
    if records.partial:
        rows = rows[records.answered()[:, part].any(1)]
    said = torch.from_numpy(records.read(rows[spread(len(rows), SAMPLED)]).astype(np.float64))[:, part]
    shares = None if shares is None else shares[part]
    if records.partial:  # a member that does not answer takes the mean of those that do
        said, of_rows = those_who_answer(said, shares)
        shares = None if shares is None else of_rows
    return learned.task.student_family(said.numpy(), None, None if shares is None else shares.numpy())


def _last_stage(student: StudentSettings, body: nn.Module) -> LastStage | None:
    """The stage of the body at which heads begin; None for heads on the whole body.

    If `student.init` is a list, each head starts from its own member, and so needs an adapter to it.
    """
    heads = student.heads
    if isinstance(heads, tuple):
        return None
    table = LastStageSettings.model_validate({}) if isinstance(heads, str) else heads
    adapted = student.from_members
    for key, value in (("adapt-from", table.adapt_from), ("rank", table.rank), ("compress", table.compress)):
        if value is not None and not adapted:
            raise EdistillError(
                f"student.heads has {key} = {value!r}, which is for heads that start from their members' own last "
                'stages. List the members that the body starts from, student.init = ["member-00"], or leave it out.'
            )
    return LastStage(table.last_stage or last_stage_of(body), table.adapt_from, adapted, table.rank)


def _one_each(asked: Asked, stage: LastStage | None, bodies: Sequence[str], members: Sequence[str]) -> bool:
    """Whether each head reads only the body of its own member.

    The other bodies then tell little about that member, and reading them would need as many weights again.
    """
    return (
        asked.student.from_members
        and stage is None
        and asked.method.form == "heads"
        and asked.method.heads(len(members)) == len(bodies) > 1
        and list(bodies) == list(members)
    )


def _share(asked: Asked, among: Among, student: Student, heads: int) -> None:
    """Give the student the modules of its one teacher that `student.share` names."""
    teachers = [one for one in among.teachers if one.member.name in among.names]
    if not teachers:
        raise EdistillError(
            f"student.share copies modules of the teacher, and {asked.teachers.path} is not there. Put it back."
        )
    if len(teachers) > 1:
        raise EdistillError(
            f"student.share copies modules of one teacher, and there are {len(teachers)}: "
            f"{first_few([teacher.member.name for teacher in teachers], 6)}. Choose one, --teacher "
            f"{teachers[0].member.name}."
        )
    if heads > 1:
        raise EdistillError(
            f"student.share is for students with one head, and {asked.train.method} makes {heads}. Leave it out."
        )
    if HEAD in asked.student.share and not among.task.shares_output:
        raise EdistillError(
            f"student.share names {HEAD}, and the numbers that a student emits are in another unit than its teacher's. "
            f"For {among.task.key} share modules of the body alone."
        )
    (teacher,) = teachers
    module = teacher.build()
    root = module.student if isinstance(module, Pooled) else module
    share(student, root, f"member {teacher.member.name}", asked.student.share, teacher.member.class_order)


# --- refusals --------------------------------------------------------------------------------------------------------


def _refuse_tied(asked: Asked) -> None:
    """Raise EdistillError for a tied output layer if heads, bodies or form do not allow it."""
    student, tied = asked.student, asked.student.tied
    if tied is None:
        return
    for key, found in (("heads", not isinstance(student.heads, tuple)), ("init", student.from_members)):
        if found:
            raise EdistillError(
                f"student.tied is {tied!r}, and student.{key} is {getattr(student, key)!r}: an output layer can be "
                "tied where all heads read one body. Leave one of the two out."
            )
    if asked.method.form != "heads":
        raise EdistillError(
            f"student.tied is {tied!r}, and {asked.train.method} gives every layer factors of each member. Leave it "
            "out, or use --method hydra."
        )


def _refuse_no_positions(student: StudentSettings, positions: int | None) -> None:
    """Raise EdistillError for a start from several members, or for last stages as heads, if rows have positions."""
    if positions is None:
        return
    if student.from_members:
        raise EdistillError(
            f"student.init is a list of {len(student.init or ())}, which puts members side by side, and rows have "
            f"{positions} positions. Start from one member, student.init = {(student.init or ('member-0',))[0]!r}, or "
            "leave it out."
        )
    if not isinstance(student.heads, tuple):
        raise EdistillError(
            f"student.heads is a last stage, and rows have {positions} positions. Use heads = [], or a list of sizes."
        )


def _refuse_no_stages(student: StudentSettings, encoding: Named | None) -> None:
    """Raise EdistillError for last stages as heads if the body takes several arrays."""
    if encoding is not None and not isinstance(student.heads, tuple):
        raise EdistillError(
            f"student.heads is a last stage, and rows are several arrays, {' and '.join(encoding.fields)}: a body is "
            "taken apart where it takes one array. Use heads = [], or a list of sizes."
        )


def _refuse_other_inputs(teachers: Sequence[Teacher], preprocessing: AnyPreprocessing | None) -> None:
    """Raise EdistillError for members that see rows differently than the student.

    As bodies of the student, they would predict differently.
    """
    for teacher in teachers:
        theirs = teacher.member.preprocessing
        if not same_rows(theirs, preprocessing):
            what, there, here = difference(theirs, preprocessing)
            raise EdistillError(
                f"The student starts from {teacher.member.name}, whose {what} is {there}, but its own is {here} "
                "(student.preprocessing). Start from members with the student's preprocessing, or leave the list in "
                "student.init out."
            )


def _refuse_fewer_heads(asked: Asked, members: int) -> None:
    """Raise EdistillError if heads start from their own members and the method does not make one head per member."""
    if asked.method.heads(members) != members or asked.method.form != "heads":
        raise EdistillError(
            f"student.init is a list and student.heads a last stage, so every head starts from its own member, and "
            f"{asked.train.method} has no head for each of the {members}. Use --method hydra, or another "
            "student.heads."
        )


def _refuse_uncompressed(student: StudentSettings, stage: LastStage | None) -> None:
    """Raise EdistillError if `student.compress` is set for bodies that cannot be compressed."""
    if student.compress is None:
        return
    given = f"student.compress is {student.compress:g}"
    if student.init is None:
        raise EdistillError(
            f"{given}, and it is members' layers that are compressed. Say which the body starts from, as in "
            'student.init = ["member-*"] for all of them, or leave it out.'
        )
    if stage is not None:
        raise EdistillError(
            f"{given}, and student.heads begin at {stage.at}: it is for whole bodies. Use heads = [], or "
            "leave it out and give student.heads a compress of its own."
        )
    if student.share:
        raise EdistillError(f"{given}, and student.share copies modules as they are. Leave one of the two out.")
