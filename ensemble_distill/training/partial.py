"""Training rows that not all members answer, as with out-of-fold outputs: which are used, and what is refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.training.asked import Asked, Learned
from ensemble_distill.training.rows import TeacherOutputs


def answered_rows(
    asked: Asked, learned: Learned, outputs: TeacherOutputs, progress: Progress
) -> NDArray[np.int64] | None:
    """The training rows with something to learn from, in order; None for all.

    A row that some members answer is learned from those. A row that no member answers is dropped, with a note, if the
    method needs members.

    Raises:
        EdistillError: no row is left; the method learns how members differ on a row, and some rows have one member
            only; or a head has no row on which to imitate its member.
    """
    if not outputs.partial or "teacher" not in asked.needs:
        return None
    names = learned.cache.manifest.names
    part: NDArray[np.bool_] = np.array(_weights(asked, learned)) > 0
    there = outputs.answered() & part
    count = there.sum(1)
    kept = np.flatnonzero(count)
    if not len(kept):
        raise EdistillError(
            f"No member answers any of the {len(count):,} training rows: all outputs are NaN. Write what {names[0]} "
            "and the others said of them, or train by --method supervised."
        )
    _refuse_alone(asked, count[kept])
    own = asked.method.heads(len(names)) == len(names) > 1
    if own:
        refuse_headless(names, np.array(there.any(0)), part)
    least, most = int(count[kept].min()), int(count.max())
    some = "one answers each" if most == 1 else f"{least} to {most} answer a" if least < most else f"{most} answer each"
    of_head = (
        f" The fewest that a head learns from are {int(there.sum(0)[part].min()):,} of {len(count):,}." if own else ""
    )
    progress.note(f"Of {len(names)} members {some} training row, which is learned from those who do.{of_head}")
    if len(kept) == len(count):
        return None
    progress.note(f"No member answers {len(count) - len(kept):,} of {len(count):,} training rows: they are left out.")
    return kept


def _weights(asked: Asked, learned: Learned) -> tuple[float, ...]:
    names = learned.cache.manifest.names
    weights = None if asked.train.teacher else asked.teachers.shares(names)
    return (1.0,) * len(names) if weights is None else weights


def _refuse_alone(asked: Asked, count: NDArray[np.int64]) -> None:
    """Raise EdistillError if one member alone answers a row, and the method or the row weights need several per row."""
    alone = int((count == 1).sum())
    if not alone:
        return
    rows = f"one member alone answers {alone:,} of {len(count):,} training rows"
    if asked.method.several:
        raise EdistillError(
            f"{asked.train.method} learns how members differ on a row, and {rows}. Use --method hydra, whose heads "
            "learn from the rows that their members answer, or kd; or leave these rows out of data.train."
        )
    weight: float = getattr(asked.options, "row_weight", 0.0)
    if weight:
        raise EdistillError(
            f"method.row-weight is {weight:g}, by which a row counts as its members disagree, and {rows}. Leave it out."
        )


def refuse_headless(names: tuple[str, ...], there: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> None:
    """Raise EdistillError for members that answer no training row: their heads would have nothing to imitate.

    Args:
        there: (M,) whether each member answers some row.
        wanted: (M,) whether each member is part of the ensemble.
    """
    lost = [name for name, one, part in zip(names, there.tolist(), wanted.tolist(), strict=True) if part and not one]
    if lost:
        raise EdistillError(
            f"{len(lost)} of {len(names)} members answer no training row ({first_few(lost)}), so their heads would "
            "imitate nothing. Write what they said of some, take them out of teachers.path, or use --method kd."
        )
