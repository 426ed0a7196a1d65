"""A run of our own as a teacher: the student's pooled prediction, as one member."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.files import read_json, sha256_file
from ensemble_distill.students.run import CONFIG, WEIGHTS, Run
from ensemble_distill.students.student import Student
from ensemble_distill.teachers.teacher import Context, Teacher


class Pooled(nn.Module):
    """x to the logits (B, K) of the mean over a student's heads."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> Tensor:
        return self.student.predictive(self.student(x)).pooled().logits.squeeze(1)


def claims(path: Path) -> bool:
    """A folder whose config.json says it is ours."""
    config = path / CONFIG
    try:
        return config.is_file() and "edistill" in read_json(config)
    except ValueError:
        return False


def load(path: Path, context: Context) -> Teacher:
    run = Run.open(path)
    config = run.config
    order = None
    if context.classes is not None and context.classes != config.classes:
        if set(context.classes) != set(config.classes):
            raise EdistillError(
                f"{path} has classes {', '.join(config.classes[:4])}, …, and the data has "
                f"{', '.join(context.classes[:4])}, …. Give a run of the same classes."
            )
        order = tuple(context.classes.index(name) for name in config.classes)
    return Teacher(
        Member(
            name=path.name,
            sha256=sha256_file(path / WEIGHTS),
            output="logits",
            class_order=order,
            preprocessing=config.preprocessing,
            model="edistill run",
        ),
        lambda: Pooled(run.student()).eval().requires_grad_(False),
    )
