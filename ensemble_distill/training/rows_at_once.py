"""What to do about a body that fails in a step of training: how many rows it is given is the user's to say."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_distill.settings import TrainSettings
from ensemble_distill.students.per_head import normalizes_batches
from ensemble_distill.students.student import Student


def remedy(student: Student, x: Tensor, settings: TrainSettings) -> str:
    """For a body that failed on x (B, ...): found out by trying, where one row was too few."""
    if len(x) == 1 and _normalizes(student) and _works(student, torch.cat([x, x])):
        few = "Set train.batch-size to 2 or more" if settings.batch_size == 1 else "Give more than one training row"
        return f"In training it takes two rows and not one, by whose spread BatchNorm divides. {few}, or {FROZEN}."
    at_once = f"In training {len(x)} rows at once are train.batch-size"
    fewer = f"{at_once}: lower it where memory ran out" if len(x) > 1 else at_once
    without = ", or leave out train.channels-last" if settings.channels_last else ""
    return f"{fewer}{without}."


FROZEN = "set train.freeze-bn = true, to normalize as in evaluation"


def _normalizes(student: Student) -> bool:
    return any(module.training and normalizes_batches(module) for module in student.modules())


def _works(student: Student, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            student.body(x)
    except Exception:  # the body is anyone's code
        return False
    return True
