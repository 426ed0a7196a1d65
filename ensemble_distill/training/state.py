"""What a training changes at every step: created for each stage, and restored from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.methods.method import Stage
from ensemble_distill.runs.rebuilding import misfit
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.keys import uniforms
from ensemble_distill.students.student import Student
from ensemble_distill.training.budget import SettledTraining
from ensemble_distill.training.checkpoint import damaged, random_state, restore_random_state
from ensemble_distill.training.compiled import compile_body
from ensemble_distill.training.forward import Forward, channels_last, channels_last_state
from ensemble_distill.training.optimization import optimization
from ensemble_distill.training.order import Order, boundaries
from ensemble_distill.training.plateau import Plateau
from ensemble_distill.training.summary import Summary
from ensemble_distill.training.together import Through


@dataclass
class State:
    """What a step changes."""

    stage: int
    step: int  # steps done so far, over all stages
    student: Student
    optimizer: torch.optim.Optimizer
    scheduler: Any  # timm's, or a Plateau
    ema: Any  # timm's ModelEmaV3, or None
    scaler: torch.amp.GradScaler
    summary: Summary = field(default_factory=Summary)
    through: Through | None = None  # the student's forward pass in training; set at the stage's first step

    @property
    def finished(self) -> Student:
        """The student to keep: its moving average if there is one."""
        student: Student = self.student if self.ema is None else self.ema.module
        return student

    def saved(self, device: torch.device) -> dict[str, Any]:
        """The state as a checkpoint, for `States.restored`."""
        return {
            "stage": self.stage,
            "step": self.step,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": self.scaler.state_dict(),
            # other schedules are functions of the step
            "plateau": self.scheduler.state_dict() if isinstance(self.scheduler, Plateau) else None,
            **_random_states(device),
            **self.summary.saved(),
        }


def _random_states(device: torch.device) -> dict[str, Any]:
    """The generator states of the first process and of any others. Every rank has to call it."""
    first, *others = ranks.of_each(random_state(device))
    return {"random": first, "random_others": others} if others else {"random": first}


def own_seed(seed: int, step: int = 0) -> int:
    """The seed of this process's generators: `seed` in the first process, its own in each other one.

    Dropout then differs between processes.
    """
    if ranks.is_first():
        return seed
    return int(uniforms(1, "rank", seed, ranks.current().index, step)[0] * 2**31)


def highest_decay(steps: int) -> float:
    """The decay that the moving average's warm-up reaches in a stage: 1 − t^(−2/3) at step t, counted from 0.

    `train.model-ema-decay` caps it from the step on at which it is reached.
    """
    return 1 - math.pow(max(1, steps - 1), -2 / 3)


class States:
    """Creates the states of a training.

    Attributes:
        steps: number of steps of the whole training.
        ends: the step at which each stage ends.

    Raises:
        EdistillError: there are fewer steps than stages.
    """

    def __init__(self, stages: Sequence[Stage], order: Order, settings: SettledTraining, device: torch.device) -> None:
        self.stages, self.order, self.settings, self.device = stages, order, settings, device
        self.forward = Forward(settings, device)
        self.steps = settings.epochs * order.steps_per_epoch
        self.ends = boundaries(stages, self.steps)

    def begin(self, stage: int) -> int:
        """The step at which a stage begins."""
        return self.ends[stage - 1] if stage else 0

    def started(self, student: Student, stage: int) -> Student:
        """A stage's student, made from that of the stage before."""
        student = self.stages[stage].start(student).to(self.device)
        ranks.as_first(student)
        if self.settings.channels_last:
            channels_last(student)
        if self.settings.torchcompile is not None:
            compile_body(student, self.settings.torchcompile)
        return self.forward.learning(student)

    def fresh(self, student: Student, stage: int) -> State:
        """A student at the first step of a stage, with a fresh optimizer, schedule and average.

        Raises:
            EdistillError: timm has no such optimizer.
        """
        from timm.utils import ModelEmaV3

        settings = self.settings
        steps = max(1, self.ends[stage] - self.begin(stage))
        optimizer, scheduler = optimization(student, settings, steps, self.order.steps_per_epoch)
        ema = ModelEmaV3(student, decay=settings.model_ema_decay, use_warmup=True) if settings.model_ema else None
        lower = settings.amp and settings.amp_dtype == "float16"
        scaler = torch.amp.GradScaler(self.device.type, enabled=lower and self.device.type == "cuda")
        return State(stage, self.begin(stage), student, optimizer, scheduler, ema, scaler)

    def restored(self, saved: Mapping[str, Any], first: State, folder: Path) -> State:
        """The state in a checkpoint of `folder`, loaded into `first`, the state of the first step.

        Raises:
            EdistillError: the checkpoint is of another student, or damaged.
        """
        state = first
        try:
            for stage in range(1, saved["stage"] + 1):  # for the shapes; the weights come from the checkpoint
                state = self.fresh(self.started(state.student, stage), stage)
            state.step = saved["step"]
            state.student.load_state_dict(saved["student"])
            state.optimizer.load_state_dict(saved["optimizer"])
            if self.settings.channels_last:
                channels_last_state(state.optimizer)
            if state.ema is not None:
                state.ema.module.load_state_dict(saved["ema"])
            if saved["scaler"]:  # empty if the scaler was disabled, as on a CPU
                state.scaler.load_state_dict(saved["scaler"])
            if isinstance(state.scheduler, Plateau):
                state.scheduler.load_state_dict(saved["plateau"])
            self._restore_random_state(saved)
            state.summary = Summary.restored(saved)
        except (RuntimeError, ValueError) as error:
            told = misfit(saved["student"], state.student.state_dict()) or first_line(error)
            raise EdistillError(
                f"The checkpoint in {folder} does not fit the student: {told}. The code of student.model or "
                "config.json has changed since: put it back, or run edistill train --overwrite."
            ) from None
        except (LookupError, TypeError, AttributeError) as error:  # what no training ever saved
            raise damaged(folder, error) from None
        return state

    def _restore_random_state(self, saved: Mapping[str, Any]) -> None:
        """Restore this process's generators, if the checkpoint is from as many processes.

        Otherwise only the first process continues its own; the others are seeded from the step.
        """
        rank, others = ranks.current(), saved.get("random_others", [])
        if ranks.is_first():
            restore_random_state(saved["random"], self.device)
        elif len(others) == rank.world - 1:
            restore_random_state(others[rank.index - 1], self.device)
        else:
            torch.manual_seed(own_seed(self.settings.seed, saved["step"]))
