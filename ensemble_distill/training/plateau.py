"""A learning rate that falls when the validation figure stops improving, under timm's option names.

timm's own plateau scheduler is deprecated, and saves too little of its state to resume. torch's scheduler does the
counting here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ensemble_distill.errors import EdistillError
from ensemble_distill.training.budget import SettledTraining

WATCHED = ("validation_perplexity", "validation_nll", "validation_loss")  # the first one available
KEPT = ("best", "num_bad_epochs", "last_epoch")  # state of torch's scheduler; the optimizer keeps the rate itself


class Plateau:
    """The learning rate of a stage: a linear warmup, then steps down on a plateau.

    The rate is multiplied by `train.decay-rate` whenever more than `train.patience-epochs` epochs have not improved the
    best figure by more than `train.plateau-threshold`.

    Args:
        warmup: number of warmup steps, which begin at a hundredth of the rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: SettledTraining, warmup: int) -> None:
        self.optimizer, self.warmup, self.rate, self._steps = optimizer, warmup, settings.lr, 0
        self._torch = ReduceLROnPlateau(
            optimizer,
            factor=settings.decay_rate,
            patience=settings.patience_epochs,
            threshold=settings.plateau_threshold,
            threshold_mode="abs",
        )

    def step_update(self, index: int) -> None:
        """Set the rate before step `index` of the stage, during warmup."""
        self._steps = index
        if index <= self.warmup and self.warmup:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * (0.01 + 0.99 * index / self.warmup)

    def end_epoch(self, validated: Mapping[str, float]) -> None:
        """Take the validation figures at the end of an epoch. They do not count during warmup."""
        if self._steps >= self.warmup:
            self._torch.step(next(validated[name] for name in WATCHED if name in validated))

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self._torch, name) for name in KEPT}
        return {name: None if value == math.inf else value for name, value in state.items()}  # JSON has no infinity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in KEPT:
            setattr(self._torch, name, math.inf if state[name] is None else state[name])


def refuse_no_validation(settings: SettledTraining, validated: bool) -> None:
    """Raise EdistillError if the learning rate depends on validation rows and there are none."""
    if settings.sched == "plateau" and not validated:
        raise EdistillError(
            "train.sched is 'plateau', which looks at the validation rows after each epoch, and the cache has none. "
            "Set data.validation and run edistill cache-logits, or use --sched cosine."
        )
