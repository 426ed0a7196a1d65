"""A rate that falls when the validation figure does not, under timm's names for it.

timm's own scheduler of that name is deprecated, and keeps too little of its state to be resumed; torch's does the
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

WATCHED = ("validation_perplexity", "validation_nll", "validation_loss")  # the first that there is
KEPT = ("best", "num_bad_epochs", "last_epoch")  # of torch's scheduler, beside the rate, which the optimizer keeps


class Plateau:
    """The rate of a stage: after its warmup the one that is set, times `train.decay-rate` whenever more epochs than
    `train.patience-epochs` have brought no new best figure, by more than `train.plateau-threshold`.

    Args:
        warmup: steps of linear warmup from a hundredth of the rate.
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
        """Before step `index` of the stage."""
        self._steps = index
        if index <= self.warmup and self.warmup:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * (0.01 + 0.99 * index / self.warmup)

    def end_epoch(self, validated: Mapping[str, float]) -> None:
        """After an epoch, with the validation figures of its end. While the rate warms up nothing is counted."""
        if self._steps >= self.warmup:
            self._torch.step(next(validated[name] for name in WATCHED if name in validated))

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self._torch, name) for name in KEPT}
        return {name: None if value == math.inf else value for name, value in state.items()}  # JSON has no infinity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in KEPT:
            setattr(self._torch, name, math.inf if state[name] is None else state[name])


def refuse_no_validation(settings: SettledTraining, validated: bool) -> None:
    """Raise EdistillError for a rate that falls by validation rows where there are none."""
    if settings.sched == "plateau" and not validated:
        raise EdistillError(
            "train.sched is 'plateau', which looks at the validation rows after each epoch, and the cache has none. "
            "Set data.validation and run edistill cache-logits, or use --sched cosine."
        )
