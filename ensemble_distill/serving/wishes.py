"""What `predict` adds to each row on request, and what an exported file must contain for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.serving.exported_file import ExportedFile
from ensemble_distill.tasks.conformal import Intervals, Sets
from ensemble_distill.tasks.figures import UNCERTAINTIES
from ensemble_distill.tasks.reference import Reference, fewest_for

COLUMNS = ("abstains", "head", *Sets.columns, *Intervals.columns)  # first words of the columns that wishes add


@dataclass(frozen=True)
class Wishes:
    """What to add to each row.

    Attributes:
        heads: the prediction of each head.
        abstain_above: mark rows whose uncertainty exceeds it, for somebody to look at; None for no mark.
        coverage: mark rows whose uncertainty exceeds that of this share of the calibration rows; None for no mark.
        by: the uncertainty that both use; None for the total, or with `coverage` the model uncertainty if the student
            has one.
        alpha: add sets or intervals that miss the truth for at most this share of rows; None for none.
    """

    heads: bool = False
    abstain_above: float | None = None
    coverage: float | None = None
    by: str | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        """Raise EdistillError for an invalid threshold, for two of them, and for `by` without any."""
        if self.abstain_above is not None and not 0 <= self.abstain_above < math.inf:
            raise EdistillError(
                f"--abstain-above is {self.abstain_above}, and uncertainties are numbers from 0 on. Give one, 0.2 say."
            )
        if self.abstain_above is not None and self.coverage is not None:
            raise EdistillError(
                f"--abstain-above {self.abstain_above} and --coverage {self.coverage} are two thresholds for one mark. "
                "Leave one of them out."
            )
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise EdistillError(
                f"--coverage is {self.coverage}, and a share of rows to keep is above 0, and 1 at most. "
                "Give 0.9 for 90 %."
            )
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise EdistillError(
                f"--alpha is {self.alpha}, and a share of rows to miss is between 0 and 1. "
                "Give 0.1 to miss 10 % at most."
            )
        if self.by is not None and self.abstain_above is None and self.coverage is None:
            raise EdistillError(
                f"--abstain-by {self.by} says by what rows are marked, and nothing says above what. "
                "Add --coverage 0.9 or --abstain-above 0.2, or leave it out."
            )


@dataclass(frozen=True)
class Settled:
    """Wishes, resolved to the thresholds of one file.

    Attributes:
        heads: as in `Wishes`.
        by, above: the uncertainty that marks a row, and its threshold; `above` is None for no mark.
        thresholds: (S,), those of the conformal scores; None for no sets.
    """

    heads: bool
    by: str
    above: float | None
    thresholds: NDArray[Any] | None


def settled(wishes: Wishes, served: ExportedFile, progress: Progress) -> Settled:
    """The wishes, resolved by what a file records about its calibration rows.

    Raises:
        EdistillError: the file has no such record, or its student lacks what is wished for.
    """
    shown = [name for name in UNCERTAINTIES if name in served.outputs]
    _refuse_heads(wishes, served)
    above, by = wishes.abstain_above, wishes.by or "total_uncertainty"
    if wishes.coverage is not None:
        reference = _reference(served, f"--coverage {wishes.coverage}")
        by = wishes.by or reference.kept_by()
        _refuse_uncertainty(by, shown, served)
        above = reference.threshold(wishes.coverage, by)
        told, called = by.replace("_", " "), served.card.task.answers_called
        progress.note(
            f"--coverage {wishes.coverage}: {called} above a {told} of {above:.6g} abstain, by {reference.rows:,} "
            f"calibration {called}."
        )
    elif above is not None:
        _refuse_uncertainty(by, shown, served)
    thresholds = None if wishes.alpha is None else _thresholds(served, wishes.alpha, progress)
    return Settled(wishes.heads, by, above, thresholds)


def _thresholds(served: ExportedFile, alpha: float, progress: Progress) -> NDArray[Any]:
    task = served.card.task
    if task.conformal is None:
        raise EdistillError(
            f"--alpha {alpha}: {served.path} is of {task.key}, whose {task.answers_called} depend on each other, so "
            "that calibration rows promise nothing of others. Leave it out, or mark the uncertain ones: --coverage 0.9."
        )
    reference = _reference(served, f"--alpha {alpha}")
    if reference.conformal is None:
        raise EdistillError(
            f"--alpha {alpha} needs labels of the calibration rows, and {served.path} was exported without any. Give "
            f"data.calibration labels and export again: {export_again(served.path)}."
        )
    found = reference.conformal_thresholds(alpha)
    if not np.isfinite(found).all():
        progress.warn(
            f"--alpha {alpha} needs {fewest_for(alpha):,} calibration rows, and {served.path} has {reference.rows:,}: "
            "so every answer is inside, and there is no bound. Take a larger alpha, or export with more rows in "
            "data.calibration."
        )
    return found


def _reference(served: ExportedFile, wished: str) -> Reference:
    """The file's record of calibration rows; raises EdistillError if there is none."""
    reference = served.card.reference
    if reference is None:
        raise EdistillError(
            f"{wished} goes by calibration rows, and {served.path} was exported without any. Set data.calibration to "
            f"rows that no member was trained on, and export again: {export_again(served.path)}."
        )
    return reference


def _refuse_heads(wishes: Wishes, served: ExportedFile) -> None:
    if wishes.heads and not {"head_logits", "head_means"} & set(served.outputs):
        raise EdistillError(
            f"{served.path} has one head ({served.card.method}), and --heads asks for each. Leave it out, or export a "
            "student with a head for each member."
        )


def _refuse_uncertainty(by: str, shown: Sequence[str], served: ExportedFile) -> None:
    if by not in shown:
        raise EdistillError(
            f"--abstain-by is {by}, and {served.path} has {' and '.join(shown)}: a single head has no model "
            "uncertainty. Use --abstain-by total_uncertainty."
        )
