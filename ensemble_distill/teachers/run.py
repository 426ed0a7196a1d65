"""An edistill run folder: `config.json` and `student.safetensors`.

The pooled prediction of its student is one member, or each head is one (`teachers.as`): a student can teach the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runs.folder import CONFIG, WEIGHTS
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.trust import Trust
from ensemble_distill.runtime.jsons import read_json
from ensemble_distill.students.student import Student
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.teacher import Context, Origin, Teacher

MODEL = "edistill run"  # `Member.model` of this kind


class Pooled(nn.Module):
    """Maps x to the pooled prediction of a student's heads: logits (B, *L, K), or means and log-variances (B, 2D)."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> Tensor:
        return self.student.predictive(self.student(x)).as_member()


class OneHead(Pooled):
    """Maps x to the prediction of one head of a student, in the form of a member's output."""

    def __init__(self, student: Student, run: Run, trusted: Trust, at: int) -> None:
        super().__init__(student)
        self.run, self.trusted, self.task, self.at = run, trusted, run.architecture.task, at

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.task.members_family().raw(self.student.predictive(self.student(x)))
        return said[:, self.at]


def once(modules: Sequence[nn.Module]) -> list[tuple[int, nn.Module]]:
    """The modules to measure the cost of when members run together: heads of the same run share its body.

    The heads of a run become a student of just these heads, which runs the body once. It costs as much as they do, but
    its weights may be others.

    Args:
        modules: the members' modules.

    Returns:
        For each module to run, the position of a member whose input it takes, and the module.
    """
    heads: dict[str, list[int]] = {}
    for at, module in enumerate(modules):
        heads.setdefault(module.run.digest if isinstance(module, OneHead) else f"member {at}", []).append(at)
    return [(some[0], _together([modules[at] for at in some])) for some in heads.values()]


def _together(modules: Sequence[nn.Module]) -> nn.Module:
    """The single module, or a student of the given heads of one run."""
    heads = [module for module in modules if isinstance(module, OneHead)]
    if not heads:
        (module,) = modules
        return module
    first = heads[0]
    if len(heads) == first.run.architecture.heads:
        return first.student
    return first.run.with_heads([head.at for head in heads], first.trusted)


def claims(path: Path) -> bool:
    """Whether `path` is a folder whose config.json says that edistill wrote it."""
    config = path / CONFIG
    try:
        record = read_json(config) if config.is_file() else None
    except (ValueError, OSError):  # the config of another kind, or of none
        return False
    return isinstance(record, dict) and "edistill" in record


def load(path: Path, context: Context) -> Teacher:
    """Load a run; raises EdistillError if it is not finished, or its task or classes are not the data's."""
    run = Run.open(path)
    task = run.architecture.task
    if task.key != context.task:
        raise EdistillError(
            f"{path.name} is a run for {task.key}, and the task is {context.task}. Remove it from teachers.path, or "
            f'set task = "{task.key}".'
        )
    member = Member(
        name=path.name,
        sha256=run.digest,
        output=task.own_output,
        class_order=_class_order(path, task, context),
        preprocessing=run.architecture.preprocessing,
        model=MODEL,
    )
    return Teacher(member, partial(_build, run, context.trusted), Origin(WEIGHTS))


def heads_of(path: Path, context: Context) -> list[Teacher]:
    """Each head of a run as a member `RUN.head-K`, or the run itself if it has one head.

    Raises:
        EdistillError: as `load` does.
    """
    whole, run = load(path, context), Run.open(path)
    if run.architecture.heads == 1:
        return [whole]
    found = []
    for at in range(run.architecture.heads):
        digest = hashlib.sha256(f"{run.digest} head {at}".encode()).hexdigest()
        member = replace(whole.member, name=f"{path.name}.head-{at}", sha256=digest)
        found.append(Teacher(member, partial(_build_head, run, context.trusted, at), Origin(WEIGHTS)))
    return found


def _class_order(path: Path, task: Task, context: Context) -> tuple[int, ...] | None:
    if context.said is not None and context.said[1].classes is not None:
        return context.order(path.name, task.names, CONFIG)
    return task.order_in(path.name, context.names, CONFIG)


def _build(run: Run, trusted: Trust) -> nn.Module:
    return Pooled(run.student(trust=trusted)).eval().requires_grad_(False)


def _build_head(run: Run, trusted: Trust, at: int) -> nn.Module:
    return OneHead(run.student(trust=trusted), run, trusted, at).eval().requires_grad_(False)
