"""Whether a training ended before its loss did: what is told beside a run that was cut short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Progress

# of all that the loss fell: on the quickstart's digits 60 epochs left .06 for the second half at most, and 6 of kd with
# a fresh body .09 to .11; of two epochs the second is all that there is to compare, so any fall tells
CLEARLY = 0.1


def still_falling(table: Sequence[Mapping[str, Any]]) -> float | None:
    """Which share of all that the loss fell it fell in the second half of the last stage, in [0, 1]; None where that is
    not clear: below a tenth, or where fewer than two epochs tell.

    Schedules that lower the learning rate flatten every loss at the end, so the last epochs alone say nothing; but
    what was learned in time was learned in the first half. The last epoch is compared with the one that ends the first
    half of its stage. The whole fall is from the first epoch of the training, since a later stage starts from what
    another has learned. Where there are validation rows their loss must have fallen too: a student that learns its
    training rows by heart needs no more epochs. A loss that changes with time, as that of an annealed temperature
    does, is told by the validation rows, for which it is that of the end.

    Args:
        table: a row an epoch, as `Summary.table` has it.
    """
    last = [row for row in table if row["stage"] == table[-1]["stage"]] if table else []
    if len(last) < 2:
        return None
    middle = last[(len(last) - 1) // 2]
    found = _share(table[0], middle, last[-1], "train_loss")
    if found is None or found < CLEARLY or not _fell(middle, last[-1]):
        return None
    return found


def _share(first: Mapping[str, Any], middle: Mapping[str, Any], last: Mapping[str, Any], key: str) -> float | None:
    whole, late = first[key] - last[key], middle[key] - last[key]
    return round(min(late / whole, 1.0), 4) if whole > 0 else None


def _fell(middle: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether the validation loss did, where there is one in both."""
    key = "validation_loss"
    return key not in middle or key not in last or middle[key] > last[key]


def tell_still_falling(run: Run, progress: Progress) -> None:
    """Say it where a run's training ended before its loss did."""
    share = run.provenance.still_falling
    if share is not None:
        progress.warn(
            f"The loss of {run.folder.name} was still falling: {share:.0%} of its fall came in the second half of the "
            "last stage. Raise train.epochs, or train.lr, before you compare it with others."
        )
