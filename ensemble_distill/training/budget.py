"""How long and how fast a student is trained where nobody says so: a budget of steps, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from pydantic import Field

from ensemble_distill.settings import TrainSettings

STEPS = 3000  # of the default effort, which few rows reach by more epochs
FEWEST, MOST = 20, 1000  # epochs of the default effort
EFFORTS = {"quick": 0.25, "default": 1.0, "patient": 4.0}  # what the three are multiplied by
RATE = 1e-3  # of a fresh student
GENTLE = 0.1  # times that, where it starts from all members and so near what it is to learn


class SettledTraining(TrainSettings):
    """`[train]` with nothing left to decide."""

    epochs: int = Field(TrainSettings.model_fields["epochs"].default)
    lr: float = Field(TrainSettings.model_fields["lr"].default)


def default_epochs(rows: int, batch_size: int, effort: str = "default") -> int:
    """As many epochs as make enough steps: at least 20 and at most 1,000, times what the effort asks for.

    Args:
        rows: that are trained on.
        batch_size: of them in a step.
        effort: a key of `EFFORTS`.
    """
    times, steps_per_epoch = EFFORTS[effort], max(1, rows // batch_size)
    return ceil(times * min(MOST, max(FEWEST, STEPS / steps_per_epoch)))


def default_rate(near: bool) -> float:
    """The peak learning rate of a student, or of one that starts near what it is to learn."""
    return RATE * GENTLE if near else RATE


def settled(train: TrainSettings, rows: Callable[[], int], near: bool) -> SettledTraining:
    """The settings with their epochs and their learning rate; what was set stays.

    The effort is then the default one: what it came to is in the epochs.

    Args:
        rows: counts those that are trained on; it is asked where no epochs are set.
        near: whether the student starts from all members.
    """
    values: dict[str, Any] = {name: getattr(train, name) for name in TrainSettings.model_fields}
    if train.epochs is None:
        values["epochs"] = default_epochs(rows(), train.batch_size, train.effort)
    if train.lr is None:
        values["lr"] = default_rate(near)
    return SettledTraining.model_construct(**{**values, "effort": "default"})
