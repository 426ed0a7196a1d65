"""Whether a training ended before its loss had converged, and the warning about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Progress

# share of a stage's fall in loss. On the quickstart's digits the second half had at most .06 of it with 60 epochs, and
# .09 to .11 with 6 epochs of kd and a fresh body. With two epochs the second is all there is, so any fall counts
CLEARLY = 0.1
WORTHWHILE = 0.02  # share of the last loss: where the loss can hardly fall, either half may have most of its fall


def still_falling(table: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the last stage's fall in loss that came in its second half, in [0, 1].

    None if the fall is not clear: below a tenth of the whole, below a fiftieth of the last loss, or fewer than two
    epochs.

    Schedules that lower the learning rate flatten every loss at the end, so the last epochs alone say nothing. If there
    was time enough, the student learned most in the first half: the last epoch is therefore compared with the one that
    ends the first half of its stage. Each stage has a loss of its own, so losses are compared within one stage only. If
    there are validation rows, their loss must have fallen too: a student that memorizes its training rows needs no more
    epochs. For a loss that changes with time, as with an annealed temperature, the validation rows decide, since their
    loss is always that of the end.

    Args:
        table: one row per epoch, as in `Summary.table`.
    """
    last = [row for row in table if row["stage"] == table[-1]["stage"]] if table else []
    if len(last) < 2:
        return None
    half = (len(last) - 1) // 2
    found = _share(*(last[at]["train_loss"] for at in (0, half, -1)))
    return found if found is not None and found >= CLEARLY and _validated(last, half) else None


def _share(first: float, middle: float, last: float) -> float | None:
    whole, late = first - last, middle - last
    return round(min(late / whole, 1.0), 4) if whole > 0 and late > WORTHWHILE * abs(last) else None


def _validated(stage: Sequence[Mapping[str, Any]], half: int) -> bool:
    """Whether the validation loss fell in the second half too; True if it is not known.

    Long trainings validate only some epochs, so the validated epoch nearest to the middle stands for the middle.
    """
    told = {epoch: row["validation_loss"] for epoch, row in enumerate(stage) if "validation_loss" in row}
    end = told.pop(len(stage) - 1, None)
    return end is None or not told or bool(told[min(told, key=lambda epoch: abs(epoch - half))] > end)


def tell_still_falling(run: Run, progress: Progress) -> None:
    """Warn if a run's training ended before its loss had converged."""
    share = run.provenance.still_falling
    if share is not None:
        progress.warn(
            f"The loss of {run.folder.name} was still falling: {share:.0%} of its fall came in the second half of the "
            "last stage. Raise train.epochs, or train.lr, before you compare it with others."
        )
