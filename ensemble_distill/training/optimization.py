"""A stage's optimizer and learning-rate schedule, from timm."""

from __future__ import annotations

from typing import Any

import torch

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.student import Student
from ensemble_distill.training.budget import SettledTraining
from ensemble_distill.training.plateau import Plateau

NESTEROV = ("sgd", "nesterov")  # timm's names for SGD with Nesterov's momentum


def optimization(
    student: Student, settings: SettledTraining, steps: int, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Any]:
    """A fresh optimizer for the student's weights that are not frozen, and a schedule over `steps` steps.

    Raises:
        EdistillError: timm has no such optimizer, or it needs second derivatives.
    """
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    # torch's Nesterov refuses momentum 0; timm's "momentum" is the same SGD without Nesterov
    opt = "momentum" if settings.opt.lower() in NESTEROV and settings.momentum == 0 else settings.opt
    try:
        optimizer = create_optimizer_v2(
            student, opt=opt, lr=settings.lr, weight_decay=settings.weight_decay, momentum=settings.momentum
        )
    except (ValueError, AssertionError, KeyError) as error:
        raise EdistillError(f"train.opt is {settings.opt!r}, which timm refuses: {error}.") from None
    if getattr(optimizer, "is_second_order", False):
        raise EdistillError(f"train.opt is {settings.opt!r}, which needs second derivatives. Use another.")
    warmup = min(settings.warmup_epochs * steps_per_epoch, steps - 1)
    if settings.sched == "plateau":
        return optimizer, Plateau(optimizer, settings, round(warmup))
    scheduler, _ = create_scheduler_v2(
        optimizer,
        # timm's "none" has no warmup; a "step" schedule with factor 1 has
        sched="step" if settings.sched == "none" else settings.sched,
        decay_rate=1.0,  # timm's poly takes this as its power: a straight line to 0
        num_epochs=1,  # the stage is one cycle of `steps` updates
        warmup_epochs=warmup / steps,
        warmup_lr=settings.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return optimizer, scheduler
