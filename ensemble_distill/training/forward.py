"""How a student runs in training: its precision and memory format, and what to advise if its body fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.per_head import normalizes_batches
from ensemble_distill.students.student import Student
from ensemble_distill.training.budget import SettledTraining

FROZEN = "set train.freeze-bn = true, to normalize as in evaluation"


@dataclass(frozen=True)
class Forward:
    """A student's forward pass on rows x (B, …) from any device; in lower precision if train.amp is on."""

    settings: SettledTraining
    device: torch.device

    def raw(self, student: Student, x: Tensor, through: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The outputs of all heads, (B, H, W), in float32.

        Args:
            through: the student's forward pass with several processes, see `shared`; the student itself by default.
        """
        return self._run(student, through or student, x)

    def seconds(self, student: Student, x: Tensor) -> float:
        """Seconds of a pass without gradients, until the device has finished it."""
        started = time.monotonic()
        with torch.no_grad():
            self.raw(student, x).sum().item()
        return time.monotonic() - started

    def features(self, student: Student, x: Tensor) -> Tensor:
        """The input of the heads, (B, F), in float32."""
        return self._run(student, student.features, x).float()

    def _run(self, student: Student, ask: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        x = laid_out(x) if self.settings.channels_last else x
        dtype = torch.bfloat16 if self.settings.amp_dtype == "bfloat16" else torch.float16
        with torch.autocast(self.device.type, dtype, enabled=self.settings.amp):
            try:
                made = ask(x)
            except EdistillError as error:
                raise EdistillError(f"{error} {_remedy(student, x, self.settings)}") from error
        if len(made) != len(x):
            raise EdistillError(
                f"The student's body returns {len(made)} rows of {len(x)}. Return features (B, F) in training mode too."
            )
        return made

    def learning(self, student: Student) -> Student:
        """Put the student into training mode, with frozen BatchNorm statistics used as in evaluation.

        A body that starts from a member equals that member only under the member's own statistics. Mixed views have
        different ones, and a student normalized by those would predict differently on plain rows.
        """
        student.train()
        if self.settings.freeze_bn:
            for module in student.modules():
                if normalizes_batches(module):
                    module.eval()
        return student


# --- memory format: images and kernels with channels last, the order in which convolutions read them -----------------


def channels_last(module: nn.Module) -> None:
    """Lay out a module's 4-D parameters with channels last; shapes and values stay. `Module.to` refuses 3-D kernels."""
    for parameter in module.parameters():
        parameter.data = laid_out(parameter.data)


def channels_last_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay out an optimizer's moments like its kernels; loading a state undoes this layout."""
    for state in optimizer.state.values():
        state.update({key: laid_out(value) for key, value in state.items() if isinstance(value, Tensor)})


def laid_out(x: Tensor) -> Tensor:
    """A tensor (B, C, H, W) with channels last; any other tensor unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


# --- a body that fails -----------------------------------------------------------------------------------------------


def _remedy(student: Student, x: Tensor, settings: SettledTraining) -> str:
    """Advice for a body that failed on x (B, …). For a single row, trying two finds out whether one was too few."""
    normalizes = any(module.training and normalizes_batches(module) for module in student.modules())
    if len(x) == 1 and normalizes and _works(student, torch.cat([x, x])):
        few = "Set train.batch-size to 2 or more" if settings.batch_size == 1 else "Give more than one training row"
        return f"In training it takes two rows and not one, by whose spread BatchNorm divides. {few}, or {FROZEN}."
    at_once = f"In training {len(x)} rows at once are train.batch-size"
    fewer = f"{at_once}: lower it where memory ran out" if len(x) > 1 else at_once
    ways = {"channels-last": settings.channels_last, "torchcompile": settings.torchcompile is not None}
    without = "".join(f", or leave out train.{key}" for key, used in ways.items() if used)
    return f"{fewer}{without}."


def _works(student: Student, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            student.body(x)
    except Exception:  # the body is anyone's code
        return False
    return True
