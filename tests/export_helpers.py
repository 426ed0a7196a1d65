"""Small students, and the rows that their exports are compared on."""

from __future__ import annotations

from typing import Any

import torch
from configs import configured
from torch import nn

from ensemble_distill.facts import Member
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.classification import Classification


def config_of(shape: tuple[int, ...], kind: str = "features", **more: Any) -> StudentConfig:
    members = tuple(Member(name, name * 64) for name in "abc")
    of = {"task": Classification(("cat", "dog")), "members": members, "heads": 3, "hidden": (), "kwargs": {}}
    return configured(**{**of, "model": "anyone's", "shape": shape, "kind": kind, **more})


def student_around(body: nn.Module, features: int, config: StudentConfig) -> Student:
    torch.manual_seed(1)
    what = config.architecture
    heads = Heads(what.heads, features, what.hidden, len(what.task.names))
    student = Student(body, heads, what.family, what.pooling(), what.average).eval()
    with torch.no_grad():  # heads that nobody can take for one another
        student.heads.layers[-1].bias[:, 0] += torch.arange(what.heads)
    return student
