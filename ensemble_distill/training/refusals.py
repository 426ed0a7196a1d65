"""What a training refuses before its first step, each with its remedy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from ensemble_distill.data.encoding import vocabulary_size
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Named
from ensemble_distill.methods.method import Method, Stage
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.predictive.protocol import Family
from ensemble_distill.runtime import ranks
from ensemble_distill.settings import StudentSettings
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.students.embeddings import refuse_fewer_embeddings, text_in
from ensemble_distill.students.student import Student
from ensemble_distill.tasks import Task
from ensemble_distill.training.budget import SettledTraining


def refuse_generations(generations: int | None) -> None:
    """Raise EdistillError for a chain, which is not one run."""
    if generations is not None:
        raise EdistillError(
            f"train.generations is {generations}, and this trains one run. Use ensemble_distill.train_chain."
        )


def refuse_one_member(named: str, method: Method, members: Sequence[str], chosen: str | None) -> None:
    """Raise EdistillError for a method that learns how members differ, where there is one to learn from.

    Args:
        members: the names of those.
        chosen: what `train.teacher` says.
    """
    if not method.several or len(members) != 1:
        return
    how = f"train.teacher is {chosen!r}" if chosen is not None else f"{members[0]} is the only member"
    more = "Leave train.teacher out" if chosen is not None else "Add members"
    raise EdistillError(f"{how}, and {named} learns how members differ. {more}, or use --method kd or ban.")


def refuse_temperature(task: type[Task], options: BaseModel) -> None:
    """Raise EdistillError for a temperature where it would change what is learned."""
    temperature = getattr(options, "temperature", 1.0)
    if not task.softens and temperature != 1:
        raise EdistillError(
            f"method.temperature is {temperature}, and with it a student for regression would misstate its variance. "
            f"For {task.key} leave it at 1."
        )


def refuse_bodiless(student: StudentSettings) -> None:
    """Raise EdistillError where nothing says what the body is."""
    if student.model is None:
        raise EdistillError(
            "student.model is not set. Give a timm name, or a factory whose output is (B, F): student.model = "
            '"model.py:make_body".'
        )


def refuse_rowless(rows: int, batch_size: int) -> None:
    """Raise EdistillError for more processes than a step has rows.

    Args:
        rows: that are trained on.
    """
    processes, of_step = ranks.current().world, min(rows, batch_size)
    if processes > of_step:
        key = "train.batch-size" if batch_size <= rows else "the number of training rows"
        raise EdistillError(
            f"torchrun started {processes} processes, which share the {of_step} rows of a step ({key}). Start "
            f"{of_step} of them at most."
        )


def refuse_compiled_together(settings: SettledTraining, normalizes: bool) -> None:
    """Raise EdistillError for a compiled body in several processes whose BatchNorm is to be by the rows of all.

    Args:
        normalizes: whether its BatchNorm is by the rows of a step.
    """
    if ranks.several() and settings.torchcompile is not None and normalizes:
        raise EdistillError(
            f"train.torchcompile is {settings.torchcompile!r}, and torchrun started {ranks.current().world} processes: "
            "a compiled body does not ask the others for its BatchNorm. Leave the key out, or set train.freeze-bn = "
            "true."
        )


def refuse_unlabeled(named: str, method: Method, options: BaseModel, given: Mapping[str, Any], labeled: bool) -> None:
    """Raise EdistillError for rows without labels where the method needs them.

    Args:
        named: the method, as the settings have it.
        given: what they say of its options.
    """
    if labeled or "labels" not in method.needed(options):
        return
    asked = ", ".join(f"{key} = {value!r}" for key, value in given.items())
    with_options = f" with {asked}" if asked else ""
    without = "Use a method that needs none." if "labels" in method.needs else "Choose options that need none."
    raise EdistillError(f"{named}{with_options} needs labels, and data.train has none. {without}")


def refuse_double(named: str, family: Family, device: torch.device) -> None:
    """Raise EdistillError for a method that computes in float64 on a device without it."""
    if device.type == "mps" and isinstance(family, DirichletFamily):
        raise EdistillError(
            f"{named} computes in float64, which train.device {device.type!r} does not have. Use --device cpu."
        )


def refuse_broken(
    named: str, stages: Sequence[Stage], student: Student, architecture: Architecture, from_members: bool = False
) -> None:
    """Raise EdistillError when a method's stages do not end in the student that it promises: after the training the
    run could not be loaded.

    Args:
        student: that the first stage begins with; it stays as it is.
        from_members: whether each head starts from its own member.
    """
    total = sum(stage.share for stage in stages)
    if not stages or abs(total - 1) > 1e-6:
        raise EdistillError(f"{named} has {len(stages)} stages whose shares sum to {total:g}. They are to sum to 1.")
    with torch.random.fork_rng(devices=[]):  # a trial: the training itself starts from the same random numbers
        student = copy.deepcopy(student)  # and weights: a method is anyone's code, and may change them in place
        promised = student.formed(architecture.form, architecture.heads)
        frozen = student.frozen
        for index, stage in enumerate(stages):
            student = stage.start(student)
            if from_members and index == 0:
                _refuse_unsolved(named, stage, student.heads.count, architecture.heads)
    if student.frozen != frozen:
        gone = ", ".join(module for module in frozen if module not in student.frozen)
        raise EdistillError(
            f"student.share freezes {gone}, and {named} would train it again. Share others, or use --method ban, kd or "
            "supervised."
        )
    found, wanted = ({key: tuple(t.shape) for key, t in s.state_dict().items()} for s in (student, promised))
    if found != wanted:
        key = next(key for key in (*wanted, *found) if found.get(key) != wanted.get(key))
        raise EdistillError(
            f"{named} promises {architecture.heads} of form {architecture.form!r}, but its stages end in another "
            f"student: {key} is {found.get(key, 'absent')} and not {wanted.get(key, 'absent')}. Make `heads`, `form` "
            "and `stages` agree."
        )


def _refuse_unsolved(named: str, stage: Stage, heads: int, members: int) -> None:
    """Raise EdistillError for a first stage that leaves heads as they are, where each starts from its own member."""
    if heads != members:
        raise EdistillError(
            f"Each of {members} heads is to start from its own member, and stage {stage.name} of {named} has {heads}. "
            "Leave method.hinton-share out, or set it to 0."
        )
    if stage.fit is None:
        raise EdistillError(
            f"Each head starts from its own member's last stage, and stage {stage.name} of {named} does not solve for "
            "what stands behind it. Leave method.closed-form and method.hinton-share out."
        )


def refuse_fewer_tokens(body: nn.Module, encoding: Named | None, model: str) -> None:
    """Raise EdistillError for a body of texts that has no embedding of some tokens of the student's tokenizer.

    Args:
        body: its modules keep the modes that they are in.
        encoding: how texts become its input; None for other rows.
        model: what builds it, for the message.
    """
    text = text_in(encoding)
    if encoding is None or text is None:
        return
    tokens = vocabulary_size(text.tokenizer)
    modes = {module: module.training for module in body.modules()}
    body.eval()
    remedy = f"Build it for {tokens:,}, as by student.kwargs, or give the tokenizer of its own, student.preprocessing."
    try:
        refuse_fewer_embeddings(body, encoding, tokens, f"student.model {model}", remedy)
    finally:
        for module, training in modes.items():
            module.training = training
