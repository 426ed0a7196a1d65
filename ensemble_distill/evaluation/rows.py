"""What an evaluation keeps of each row, in float64; every reported figure is a reduction of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.data.source import Array
from ensemble_distill.predictive.answered import answering, matched, who_answers
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.predictive.weighted import over_members
from ensemble_distill.runtime.grown import GrownValues
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.figures import EACH, Values


def prediction_rows(task: Task, predictive: Predictive, y: Tensor | None) -> Values:
    """The pooled prediction's quality and the mixture's uncertainty, each (B,); of several answers a row
    quality is (B, D).

    Model uncertainty is left out for a single distribution, and NaN on rows that one member answers: it does not apply
    there, and is not 0.
    """
    summary = predictive.summary()
    rows = {name: values[:, 0] for name, values in task.quality(predictive.pooled(), y).items()}
    if y is not None:
        rows["nll"] = predictive.pooled_nll(y).numpy()
    rows["total_uncertainty"] = summary.total.numpy()
    rows["data_uncertainty"] = summary.data.numpy()
    if predictive.has_model_uncertainty:
        rows["model_uncertainty"] = summary.model.numpy()
    rows |= task.each_uncertainty(predictive, pooled=True)
    if (several := answering(predictive)) is not None:
        of_model = [name for name in ("model_uncertainty", EACH["model_uncertainty"]) if name in rows]
        rows |= {name: _where(several.numpy() > 1, rows[name]) for name in of_model}
    return rows


def member_rows(task: Task, members: Predictive, y: Tensor | None) -> Values:
    """Each member's own quality and uncertainty, (B, M); of several answers a row quality is (B, M, D).

    NaN on rows that it does not answer.
    """
    rows = task.quality(members, y)
    if y is not None:
        rows["nll"] = members.nll(y).numpy()
    rows["total_uncertainty"] = rows["data_uncertainty"] = task.uncertainty(members).numpy()
    rows |= task.each_uncertainty(members, pooled=False)
    there = who_answers(members)
    return rows if there is None else {name: _where(there.numpy(), values) for name, values in rows.items()}


def fidelity_rows(ensemble: Predictive, student: Predictive) -> Values:
    """How near the student is to the ensemble on each row, each (B,); nats.

    `member_kl`, `collapsed_kl` (what it would be, were every head the student's own mean) and the three deviation
    sums (see `fidelity`) need one head per member, and are left out otherwise.

    On a row that some members do not answer, who answers is compared with his own head; see `matched`. The student's
    own mean is that of all its heads. Deviations are from the mean of those who answer: NaN where that is one.
    Members of weight 0 have none.
    """
    same = matched(student, ensemble)
    rows = {"mean_kl": ensemble.pooled().kl(same.pooled())[:, 0].numpy()}
    if student.members == ensemble.members > 1:
        rows["member_kl"] = ensemble.member_mean(ensemble.kl(student)).numpy()
        rows["collapsed_kl"] = ensemble.member_mean(ensemble.kl(student.mixture())).numpy()
        rows |= _deviation_rows(ensemble, same)
    return rows


def _deviation_rows(ensemble: Predictive, student: Predictive) -> Values:
    p = ensemble.means() - ensemble.mixture().means()
    q = student.means() - student.mixture().means()
    weights, there = ensemble.weights, who_answers(ensemble)
    if weights is not None:
        p, q = (torch.where(over_members(weights > 0, p), each, 0.0) for each in (p, q))
    rows = {
        "deviation_product": (p * q).sum((1, 2)).numpy(),
        "deviation_ensemble": p.square().sum((1, 2)).numpy(),
        "deviation_student": q.square().sum((1, 2)).numpy(),
    }
    if there is None:
        return rows
    several = (there.sum(1) > 1).numpy()
    return {name: _where(several, values) for name, values in rows.items()}


def _where(there: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[Any]:
    """Values (B, …), and NaN where `there`, of its first dimensions, is not."""
    shaped = there.reshape(*there.shape, *[1] * (values.ndim - there.ndim))
    return np.where(shaped, values.astype(np.float64), np.nan)


def as_targets(labels: Array) -> Tensor:
    """Labels as figures take them: classes as int64, targets as float64."""
    y = torch.as_tensor(np.asarray(labels))
    return y.double() if y.is_floating_point() else y.long()


@dataclass(frozen=True)
class Answers:
    """Some rows of a source, as answers that are told apart: one a row, or one a position that counts.

    Attributes:
        of_all: the labels of all rows of the source, or None.
        rows: which of them these are.
    """

    task: Task
    of_all: Array | None
    rows: range

    @property
    def _of_rows(self) -> Tensor | None:
        return None if self.of_all is None else as_targets(self.of_all[self.rows.start : self.rows.stop])

    def of(self, said: Tensor) -> Tensor:
        """What was said of the rows, (B, M, *shape), an answer each, (A, M, W)."""
        return self.task.each_answer(said, self._of_rows)

    @property
    def of_row(self) -> Tensor:
        """The row that each answer is of, (A,)."""
        return self.task.each_of_row(torch.arange(self.rows.start, self.rows.stop), self._of_rows)

    @property
    def labels(self) -> Tensor | None:
        """Of each answer."""
        labels = self._of_rows
        return None if labels is None else self.task.each_label(labels, labels)


def concatenate(parts: Iterable[Values]) -> Values:
    """Batches of rows, end to end."""
    grown = GrownValues()
    for part in parts:
        grown.add(part)
    return grown.all()


def prefixed(name: str, rows: Mapping[str, NDArray[np.float64]]) -> Values:
    return {f"{name}_{key}": values for key, values in rows.items()}
