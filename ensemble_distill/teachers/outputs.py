"""Running a member, and what it returns as the numbers that the cache holds, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks import logits, moments


def run(module: nn.Module, x: Tensor, member: Member, where: str) -> Any:
    """Whatever a member returns; `where` says in an error at which rows. Raises EdistillError when it fails.

    It is given an x of its own: it may work in place, and others are shown the same.
    """
    try:
        with torch.inference_mode():
            return module(x.clone())
    except torch.OutOfMemoryError as error:
        raise EdistillError(
            f"Member {member.name} runs out of memory {where} with {len(x)} rows at once. Lower cache.batch-size."
        ) from error
    except Exception as error:  # the module is anyone's code
        raise EdistillError(
            f"Member {member.name} fails {where} on an input of shape {tuple(x.shape)}: {error}. Check "
            "teachers.preprocessing and teachers.model-kwargs against how it was trained."
        ) from error


def forward(module: nn.Module, x: Tensor, member: Member, where: str) -> Tensor:
    """A member's raw output (B, ·), copied, since the module may use its buffer again. Raises EdistillError when it
    fails, or returns something else."""
    return joined(run(module, x, member, where), len(x), member, where)


def joined(raw: Any, rows: int, member: Member, where: str) -> Tensor:
    """What a member returned of so many rows as one tensor (B, ·), copied. Raises EdistillError when it is none."""
    values = moments.joined(raw, rows, member) if member.of_numbers else logits.joined(raw, rows, member)
    if not values.is_floating_point():
        raise EdistillError(
            f"Member {member.name} returns {str(values.dtype).removeprefix('torch.')} numbers {where}, and "
            f"{member.output} are real. Return floats (teachers.model)."
        )
    return values.clone()


def to_outputs(raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """A member's raw output as the cache holds it, (B, W) float32.

    Logits in the data's class order, W = K; or a mean and a log-variance in the target's unit, W = 2.

    Raises:
        EdistillError: an output is not finite, or is not what `teachers.output` says it is.
    """
    if member.of_numbers:
        return moments.checked(raw.double().cpu().numpy(), member, split, rows)
    return logits.checked(raw.float().cpu().numpy(), member, split, rows)
