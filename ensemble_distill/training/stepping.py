"""One update of a student, and reading its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.method import Step
from ensemble_distill.runtime import ranks
from ensemble_distill.training.feed import Feed
from ensemble_distill.training.forward import Forward
from ensemble_distill.training.rows import Rows
from ensemble_distill.training.state import State, States
from ensemble_distill.training.together import shared

READ_EVERY = 32  # steps at most between reads: reading a loss waits for all work queued on the device


@dataclass(frozen=True)
class Stepping:
    """Updates a state with batches from the feed."""

    states: States
    feed: Feed
    forward: Forward

    def update(self, state: State, rows: Rows) -> None:
        """Do one step; its loss and watched figures stay on the device.

        Raises:
            EdistillError: the loss is not a single number that depends on the student.
        """
        stage, settings = self.states.stages[state.stage], self.forward.settings
        before = self.states.begin(state.stage)
        step = Step(state.step - before, self.states.ends[state.stage] - before, settings.seed)
        state.scheduler.step_update(step.index)
        batch = self.feed.batch(rows)
        state.through = state.through or shared(state.student, self.forward.device)
        raw = self.feed.each_answer(self.forward.raw(state.student, rows.x, state.through), rows)
        # watch gets its own copies, since the loss may change its arguments
        seen = None if stage.watch is None else (self.feed.batch(rows), state.student.predictive(raw.detach().clone()))
        shares = ranks.shares_taken()
        loss = stage.loss(batch, state.student.predictive(raw), step)
        _refuse_no_loss(loss, stage.name)
        if ranks.several() and ranks.shares_taken() == shares:
            loss = _of_all(loss, raw)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if settings.clip_grad is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.student.parameters(), settings.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update(state.student, step=step.index)
        with torch.no_grad():
            state.summary.add(loss, {} if stage.watch is None or seen is None else stage.watch(*seen))
        state.step += 1

    def read(self, state: State, kept: bool = False) -> list[float]:
        """Read and return the losses since the last read, all from the state's stage.

        Args:
            kept: whether there is a checkpoint from before them, for the message.

        Raises:
            EdistillError: a loss is not finite; the message names the first such step.
        """
        losses = state.summary.read()
        for step, loss in enumerate(losses, state.step - len(losses)):
            if not math.isfinite(loss):
                raise EdistillError(
                    f"The loss is {loss} at step {step} (stage {self.states.stages[state.stage].name}, train.lr "
                    f"{self.forward.settings.lr}). Lower train.lr, set train.clip-grad, or bring the options in "
                    "[method] nearer to their defaults."
                    + (" The last checkpoint is kept, and --overwrite starts again." if kept else "")
                )
        return losses


def _of_all(loss: Tensor, raw: Tensor) -> Tensor:
    """The share in the loss over all processes, from a loss that is a mean over this process's answers (A, …)."""
    own = loss * len(raw) if len(raw) else 0.0 * raw.sum()
    return ranks.share_of_all(own, own.new_full((), len(raw)), 1.0)


def _refuse_no_loss(loss: Tensor, stage: str) -> None:
    """Raise EdistillError for a loss that cannot be minimized: methods are anyone's code."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return
    shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r}"
    free = isinstance(loss, Tensor) and loss.numel() == 1
    raise EdistillError(
        f"The loss of stage {stage} is {shape}{' that does not depend on the student' if free else ''}. Return one "
        "number that follows from the student's prediction: .mean() over rows and members, no .detach() or .item()."
    )
