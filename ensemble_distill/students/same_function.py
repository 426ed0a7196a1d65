"""Whether a student is still the function that it was, by its outputs for the same input.

Its weights cannot tell: where the code of its body has a Tanh in place of a ReLU, they still fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Tokenization
from ensemble_distill.runtime.keys import normals
from ensemble_distill.runtime.spread import spread
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.students.fields import nothing
from ensemble_distill.students.student import Student

NUMBERS = 16  # of a student's outputs for an input
# tolerance as a share of the largest number: other processors and devices round differently, by more than three digits
# where a body computes in bfloat16
ALLOWED = 0.02

Answers = tuple[float, ...]


def fixed_input(what: Architecture) -> Tensor:
    """The same two rows for every student of this input: noise, or the first token throughout."""
    ids = what.positions is not None or isinstance(what.encoding, Tokenization)
    if ids or what.encoding is not None:
        return nothing(2, what.shape, ids)
    return torch.from_numpy(normals((2, *what.shape), "fixed input"))


@torch.no_grad()
def answers_to(student: Student, x: Tensor) -> Answers | None:
    """Some of a student's outputs for rows x (B, …) in eval mode, which the student need not be in.

    Returns:
        The numbers; None if they tell nothing: the body fails on x, returns what is not finite, or draws random
        numbers.
    """
    training = {module: module.training for module in student.modules()}
    student.eval()
    try:
        with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices=_cuda(x)):
            first, again = (student(x).flatten().float().cpu() for _ in range(2))
    except EdistillError:
        return None
    finally:
        student.train(training[student])  # first as a whole, since modules may do more than to set a flag
        for module, before in training.items():
            module.training = before
    found = first[spread(len(first), NUMBERS)]
    if not found.isfinite().all() or change(found.tolist(), again[spread(len(first), NUMBERS)].tolist()) is not None:
        return None
    return tuple(float(f"{number:.6g}") for number in found.tolist())


def change(before: Sequence[float], now: Sequence[float]) -> tuple[float, float] | None:
    """The pair of outputs that differs most, if it differs by more than rounding."""
    if len(before) != len(now):
        return before[0], now[0]
    first, other = np.array(before), np.array(now)
    apart = np.abs(first - other)
    at = int(apart.argmax())
    return None if apart[at] <= ALLOWED * np.abs(first).max() else (float(first[at]), float(other[at]))


def _cuda(x: Tensor) -> list[torch.device]:
    return [x.device] if x.device.type == "cuda" else []
