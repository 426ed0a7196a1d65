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
    """Raise EdistillError if a chain is configured: it is not a single run."""
    if generations is not None:
        raise EdistillError(
            f"train.generations is {generations}, and this trains one run. Use ensemble_distill.train_chain."
        )


def refuse_no_chain(named: str, method: Method, options: BaseModel, student: StudentSettings, generations: int) -> None:
    """Raise EdistillError if the method or the start of the student does not allow a chain of generations."""
    asked = f"train.generations is {generations}, and {named}"
    if student.from_members:
        raise EdistillError(
            "student.init is a list of members whose bodies stand side by side, and later generations of a chain have "
            "no members to start from. Leave it out: --set student.init="
        )
    if "teacher" not in method.needed(options):
        raise EdistillError(f"{asked} learns from no teacher. Use --method ban.")
    chain = f"Use --method ban; --method {named} can learn from a finished chain."
    if method.several:
        raise EdistillError(f"{asked} learns how members differ, while a generation has one teacher. {chain}")
    if method.heads(2) != 1:
        raise EdistillError(f"{asked} makes a head for each member, while a generation has one teacher. {chain}")


def refuse_one_member(named: str, method: Method, members: Sequence[str], chosen: str | None) -> None:
    """Raise EdistillError if the method learns how members differ, and there is only one to learn from.

    Args:
        members: names of the members to learn from.
        chosen: `train.teacher`.
    """
    if not method.several or len(members) != 1:
        return
    how = f"train.teacher is {chosen!r}" if chosen is not None else f"{members[0]} is the only member"
    more = "Leave train.teacher out" if chosen is not None else "Add members"
    raise EdistillError(f"{how}, and {named} learns how members differ. {more}, or use --method kd or ban.")


def refuse_temperature(task: type[Task], options: BaseModel) -> None:
    """Raise EdistillError for a temperature in a task where it would change what is learned."""
    temperature = getattr(options, "temperature", 1.0)
    if not task.softens and temperature != 1:
        raise EdistillError(
            f"method.temperature is {temperature}, and with it a student for regression would misstate its variance. "
            f"For {task.key} leave it at 1."
        )


def refuse_bodiless(student: StudentSettings) -> None:
    """Raise EdistillError if no setting says what the body is."""
    if student.model is None:
        raise EdistillError(
            "student.model is not set. Give a timm name, or a factory whose output is (B, F): student.model = "
            '"model.py:make_body".'
        )


def refuse_rowless(rows: int, batch_size: int) -> None:
    """Raise EdistillError if there are more processes than rows in a step.

    Args:
        rows: number of training rows.
    """
    processes, of_step = ranks.current().world, min(rows, batch_size)
    if processes > of_step:
        key = "train.batch-size" if batch_size <= rows else "the number of training rows"
        raise EdistillError(
            f"torchrun started {processes} processes, which share the {of_step} rows of a step ({key}). Start "
            f"{of_step} of them at most."
        )


def refuse_compiled_together(settings: SettledTraining, normalizes: bool) -> None:
    """Raise EdistillError for a compiled body in several processes if its BatchNorm has to average over all of them.

    Args:
        normalizes: whether its BatchNorm uses the statistics of a step's rows.
    """
    if ranks.several() and settings.torchcompile is not None and normalizes:
        raise EdistillError(
            f"train.torchcompile is {settings.torchcompile!r}, and torchrun started {ranks.current().world} processes: "
            "a compiled body does not ask the others for its BatchNorm. Leave the key out, or set train.freeze-bn = "
            "true."
        )


def refuse_unlabeled(named: str, method: Method, options: BaseModel, given: Mapping[str, Any], labeled: bool) -> None:
    """Raise EdistillError if the method needs labels and the rows have none.

    Args:
        named: the method's name in the settings.
        given: the method's options in the settings.
    """
    if labeled or "labels" not in method.needed(options):
        return
    asked = ", ".join(f"{key} = {value!r}" for key, value in given.items())
    with_options = f" with {asked}" if asked else ""
    without = "Use a method that needs none." if "labels" in method.needs else "Choose options that need none."
    raise EdistillError(f"{named}{with_options} needs labels, and data.train has none. {without}")


def refuse_double(named: str, family: Family, device: torch.device) -> None:
    """Raise EdistillError if the method computes in float64 and the device cannot."""
    if device.type == "mps" and isinstance(family, DirichletFamily):
        raise EdistillError(
            f"{named} computes in float64, which train.device {device.type!r} does not have. Use --device cpu."
        )


def refuse_broken(
    named: str, stages: Sequence[Stage], student: Student, architecture: Architecture, from_members: bool = False
) -> None:
    """Raise EdistillError if a method's stages do not end in the student it promises: its run would not load.

    Args:
        student: the first stage's; not changed.
        from_members: whether each head starts from its own member.
    """
    total = sum(stage.share for stage in stages)
    if not stages or abs(total - 1) > 1e-6:
        raise EdistillError(f"{named} has {len(stages)} stages whose shares sum to {total:g}. They are to sum to 1.")
    # a trial on a copy: the training itself starts from the same random numbers and weights, even if the method, which
    # is anyone's code, changes weights in place
    with torch.random.fork_rng(devices=[]):
        student = copy.deepcopy(student)
        promised = student.formed(architecture.form, architecture.heads)
        frozen = student.frozen
        for index, stage in enumerate(stages):
            student = stage.start(student)
            if from_members and index == 0:
                _refuse_unsolved(named, stage, student.heads.count, architecture.heads)
    if gone := [module for module in frozen if module not in student.frozen]:
        raise EdistillError(
            f"student.share freezes {', '.join(gone)}, and {named} would train it again. Share others, or use --method "
            "ban, kd or supervised."
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
    """Raise EdistillError if heads start from their own members and the first stage does not solve for all of them."""
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
    """Raise EdistillError if a text body lacks embeddings for some tokens of the student's tokenizer.

    Args:
        body: its modules keep their training or eval modes.
        encoding: how texts become its input; None for other rows.
        model: what builds the body, for the message.
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
