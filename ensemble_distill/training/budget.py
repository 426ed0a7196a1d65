"""Default epochs and learning rate: a budget of steps that does not depend on the number of rows."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from pydantic import Field

from ensemble_distill.settings import TrainSettings

STEPS = 3000  # for the default effort; with few rows this takes more epochs
FEWEST, MOST = 20, 1000  # epochs for the default effort
EFFORTS = {"quick": 0.25, "default": 1.0, "patient": 4.0}  # factors on the number of epochs
RATE = 1e-3  # for a fresh student
GENTLE = 0.1  # factor on RATE for a student that starts from all members, hence near its target


class SettledTraining(TrainSettings):
    """`[train]` with epochs and learning rate settled."""

    epochs: int = Field(TrainSettings.model_fields["epochs"].default)
    lr: float = Field(TrainSettings.model_fields["lr"].default)


def default_epochs(rows: int, batch_size: int, effort: str = "default") -> int:
    """Epochs that give `STEPS` steps, at least 20 and at most 1,000, scaled by the effort.

    Args:
        rows: number of training rows.
        batch_size: rows per step.
        effort: a key of `EFFORTS`.
    """
    times, steps_per_epoch = EFFORTS[effort], max(1, rows // batch_size)
    return ceil(times * min(MOST, max(FEWEST, STEPS / steps_per_epoch)))


def default_rate(near: bool) -> float:
    """The default peak learning rate, lower for a student that starts near its target."""
    return RATE * GENTLE if near else RATE


def settled(train: TrainSettings, rows: Callable[[], int], near: bool) -> SettledTraining:
    """Fill in the epochs and the learning rate that the settings leave open.

    The result has the default effort, since its epochs already include the effort.

    Args:
        rows: counts the training rows; called only if no epochs are set.
        near: whether the student starts from all members.
    """
    values: dict[str, Any] = {name: getattr(train, name) for name in TrainSettings.model_fields}
    if train.epochs is None:
        values["epochs"] = default_epochs(rows(), train.batch_size, train.effort)
    if train.lr is None:
        values["lr"] = default_rate(near)
    return SettledTraining.model_construct(**{**values, "effort": "default"})
