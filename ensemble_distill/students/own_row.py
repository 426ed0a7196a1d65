"""Whether a student's output for a row depends on that row alone, in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.runtime.own_row import Answers, Change, Scale, find_change, some_rows
from ensemble_distill.students.positions import at_positions
from ensemble_distill.students.student import Student

ROUNDING = 1e-5  # tolerance relative to the largest number; float32 resolves a hundredth of it


def refuse_dependent_body(body: nn.Module, x: Tensor, model: str, positions: int | None = None) -> None:
    """Raise EdistillError, before training, for a body whose features of a row are not a function of that row.

    Args:
        x: some rows as the body takes them, (B, …).
        model: what builds the body, for the message.
        positions: see `Student`.
    """

    def features(rows: Tensor) -> Tensor:
        made: Tensor = body(rows.clone())
        return made if positions is None else cast(Tensor, at_positions(made, positions))

    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        change = _change(features, x)
    finally:
        for module, training in modes.items():
            module.training = training
    if change is not None:
        raise _dependent(f"The body {model}", change)


def refuse_dependent(student: Student, x: Tensor, named: str) -> None:
    """Raise EdistillError for a trained student whose prediction for a row is not a function of that row.

    Args:
        student: in eval mode.
        x: rows as the student takes them, (B, …), on its device; a few of them are used.
        named: the student's run, for the message.
    """
    change = _change(student, x[some_rows(len(x))])
    if change is not None:
        raise _dependent(f"The student of {named}", change)


@torch.no_grad()
def _change(network: Callable[[Tensor], Tensor], x: Tensor) -> Change | None:
    def ask(rows: Tensor) -> Answers:
        try:
            return network(rows).flatten(1).cpu().double().numpy()
        except EdistillError:
            raise
        except Exception as error:  # the body is anyone's code
            raise EdistillError(quoted(error)) from error

    def scale(first: Answers) -> Scale:
        largest = float(np.abs(first).max())
        return Scale(largest, ROUNDING * largest)

    return find_change(ask, x, scale)


def _dependent(who: str, change: Change) -> EdistillError:
    said = (
        f"{who} gives {change.first:.4g} for a row in eval mode and, {change.told}. It is not a function of its row: "
    )
    if change.random:
        return EdistillError(
            f"{said}the body draws random numbers, as F.dropout(x) does without training=self.training, or keeps a "
            "state. Write F.dropout(x, training=self.training), or use torch.nn.Dropout."
        )
    return EdistillError(
        f"{said}the body depends on the rest of the batch, as BatchNorm does with track_running_stats=False. Leave "
        "that at True, and train it again."
    )
