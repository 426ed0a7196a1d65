"""Whether what a training minimizes, or ends in, are numbers that mean something."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ensemble_distill.errors import EdistillError


def number(loss: Tensor, stage: str) -> float:
    """A loss as a number. Raises EdistillError when it is not one that can be minimized: methods are anyone's code."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r}"
        free = isinstance(loss, Tensor) and loss.numel() == 1
        raise EdistillError(
            f"The loss of stage {stage} is {shape}{' that does not depend on the student' if free else ''}. Return one "
            "number that follows from the student's prediction: .mean() over rows and members, no .detach() or .item()."
        )
    return float(loss.detach())


def refuse_not_finite(raw: Tensor, rows: Sequence[int]) -> None:
    """Raise EdistillError where heads (B, H, W) that were solved for make no prediction: without a step there is no
    loss to tell."""
    finite = raw.isfinite().all(-1)
    if not finite.all():
        row, head = (int(at) for at in (~finite).nonzero()[0])
        raise EdistillError(
            f"What was solved for says numbers that are not finite: head {head}, at training row {rows[row]}. Look at "
            "the weights of the member that it starts from (student.init), or leave that out."
        )
