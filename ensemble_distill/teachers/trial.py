"""A few rows through a member before it is relied on: which of its outputs count, and that they follow from the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.own_row import Answers, Change, Scale, find_change, find_later_change
from ensemble_distill.tasks.checks import logits, moments
from ensemble_distill.teachers.outputs import forward, joined, run, to_outputs
from ensemble_distill.teachers.picking import Picked, pick

FAINT = 1e-3  # nats: by so much logits and log-variances may always differ
ROUNDING = 1e-5  # of the largest output; float32 resolves a hundredth of that
# how a Monte-Carlo member is given: in its factory's module, in place of dropout, and in each of its checkpoints
MASK = 'self.register_buffer("mask", torch.ones(width))'
MASKED = "x * self.mask.view(-1, *[1] * (x.dim() - 2))"  # of features (B, F) and of pictures' channels (B, C, H, W)
DRAWN = "(torch.rand(width) > p) / (1 - p)"
MONTE_CARLO = (
    "A Monte-Carlo member is given as several, each with a mask that stays: in its module's __init__ "
    f"{MASK}, in its forward {MASKED} in place of dropout, and one checkpoint a mask, which holds {DRAWN} under that "
    "buffer's name beside the weights."
)

Kept = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def tried(
    module: nn.Module, x: Tensor, member: Member, split: str, rows: Sequence[int], classes: int | None
) -> tuple[nn.Module, str | None]:
    """The module whose output is the member's answer, and what to tell of that; None where it returns nothing else.

    Args:
        x: (B, …) of these rows of the split, as the member takes them.
        classes: how many the data has, where that is known.

    Raises:
        EdistillError: it fails; what it returns is not plainly an answer; its numbers are each between 0 and 1, as
            sigmoids are; or what it says of a row does not follow from that row alone.
    """
    where = f"on {split}"
    returned, told = run(module, x, member, where), None
    if not (isinstance(returned, Tensor) or (member.of_numbers and moments.is_joined(returned, len(x), member))):
        part = pick(member, returned, run(module, x[:1], member, where), len(x), classes)
        said = f"a {type(returned).__name__}, of which {part.said} is taken as its {member.output}"
        told = f"Member {member.name} returns {said}."
        module, returned = Picked(module, part.steps).eval(), part.tensor
    raw = joined(returned, len(x), member, where)
    if not member.of_numbers:
        logits.refuse_sigmoids(raw.float().cpu().numpy(), member, split, rows)
    asked = _Asked(module, member, split, rows)
    change = find_change(asked, x, asked.scale, asked.answers(raw))
    if change is not None:
        raise _dependent(change, member, split, rows[change.row])
    return module, told


def refuse_other_answers(
    module: nn.Module,
    x: Tensor,
    member: Member,
    split: str,
    rows: Sequence[int],
    said: NDArray[np.float32],
    batch_size: int,
    kept: Kept,
) -> None:
    """Refuse a member that no longer says of some rows what it said of them in a pass over all.

    Args:
        x: (B, …) of these rows of the split, as the member takes them.
        said: (B, W), what the pass has kept of it.
        batch_size: how many rows it was asked about at once.
        kept: what a record keeps of outputs (B, W): float16 ends at 65,504 below the greatest.

    Raises:
        EdistillError: it answers otherwise now.
    """
    asked = _Asked(module, member, split, rows, kept)
    now = asked(x)
    first = asked.about_mean(said.astype(np.float64))
    change = find_later_change(first, now, asked.scale(first))
    if change is not None:
        raise EdistillError(
            f"Member {member.name} says {_number(member, change)} at row {rows[change.row]} of {split} in the pass "
            f"and, {change.told}. In the pass it is asked about {batch_size} rows at once, and then about {len(rows)}. "
            "It is no function of its row: it keeps a state that changes as it is asked, or goes by how many rows "
            "there are; or the data has other rows each time. Mend that, and run edistill cache-logits again."
        )


class _Asked:
    """A member's answers (B, W): logits about their mean, or means and log-variances."""

    def __init__(
        self,
        module: nn.Module,
        member: Member,
        split: str,
        rows: Sequence[int],
        kept: Kept = lambda outputs: outputs,
    ) -> None:
        self.module, self.member, self.split, self.rows, self.kept = module, member, split, rows, kept
        self.rounding = 0.0

    def __call__(self, x: Tensor) -> Answers:
        return self.answers(forward(self.module, x, self.member, f"on {self.split}"))

    def answers(self, raw: Tensor) -> Answers:
        answers = self.kept(to_outputs(raw, self.member, self.split, self.rows[: len(raw)])).astype(np.float64)
        fineness = max(ROUNDING, 2 * torch.finfo(raw.dtype).eps)
        if self.member.of_numbers:
            self.rounding = fineness * float(np.abs(answers[:, 0]).max())
            return answers
        self.rounding = fineness * float(np.abs(answers).max())
        return self.about_mean(answers)

    def about_mean(self, outputs: Answers) -> Answers:
        """Outputs (B, W) as they are compared."""
        return outputs if self.member.of_numbers else outputs - outputs.mean(axis=1, keepdims=True)

    def scale(self, first: Answers) -> Scale:
        if not self.member.of_numbers:
            return Scale(float(np.abs(first).max()), FAINT + self.rounding)
        apart = float(np.ptp(first[:, 0]) + np.exp(0.5 * first[:, 1].max()))
        return Scale(np.array([apart, 1.0]), np.array([self.rounding, FAINT]))


def _number(member: Member, change: Change) -> str:
    """What a member said first."""
    if member.of_numbers:
        return f"{('a mean', 'a log-variance')[change.output]} of {change.first:.4g}"
    return f"a logit of class {change.output}, counted from the row's mean, of {change.first:.4g}"


def _dependent(change: Change, member: Member, split: str, row: int) -> EdistillError:
    said = (
        f"Member {member.name} says {_number(member, change)} at row {row} of {split} and, {change.told}. It is no "
        "function of its row: it "
    )
    if change.random:
        return EdistillError(
            f"{said}draws random numbers, as F.dropout(x) does without training=self.training, or keeps a state. Mend "
            f"that in its module. {MONTE_CARLO}"
        )
    return EdistillError(
        f"{said}depends on the rest of the batch, as BatchNorm does with track_running_stats=False. Build it with "
        "track_running_stats=True, momentum=None; show it training rows once in training mode, and save it again."
    )
