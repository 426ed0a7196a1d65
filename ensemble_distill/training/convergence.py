"""Whether a training ended before its loss did: what is told beside a run that was cut short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Progress

# of all that the loss fell in the stage: on the quickstart's digits 60 epochs left .06 for the second half at most, and
# 6 of kd with a fresh body .09 to .11; of two epochs the second is all that there is to compare, so any fall tells
CLEARLY = 0.1
WORTHWHILE = 0.02  # of the last loss: a stage that begins where it can hardly fall has most of that in any half


def still_falling(table: Sequence[Mapping[str, Any]]) -> float | None:
    """Which share of all that the loss fell in the last stage it fell in its second half, in [0, 1]; None where that is
    not clear: below a tenth, or a fiftieth of the last loss, or where fewer than two epochs tell.

    Schedules that lower the learning rate flatten every loss at the end, so the last epochs alone say nothing; but
    what was learned in time was learned in the first half. The last epoch is compared with the one that ends the first
    half of its stage. Stages have losses of their own, so one says nothing of another's fall. Where there are
    validation rows their loss must have fallen too: a student that learns its training rows by heart needs no more
    epochs. A loss that changes with time, as that of an annealed temperature does, is told by the validation rows, for
    which it is that of the end.

    Args:
        table: a row an epoch, as `Summary.table` has it.
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
    """Whether the validation loss fell since the half too, where there is one: long trainings tell it of some epochs,
    and the nearest to the half that does stands for it."""
    told = {epoch: row["validation_loss"] for epoch, row in enumerate(stage) if "validation_loss" in row}
    end = told.pop(len(stage) - 1, None)
    return end is None or not told or bool(told[min(told, key=lambda epoch: abs(epoch - half))] > end)


def tell_still_falling(run: Run, progress: Progress) -> None:
    """Say it where a run's training ended before its loss did."""
    share = run.provenance.still_falling
    if share is not None:
        progress.warn(
            f"The loss of {run.folder.name} was still falling: {share:.0%} of its fall came in the second half of the "
            "last stage. Raise train.epochs, or train.lr, before you compare it with others."
        )
