"""The values that an evaluation keeps of each row, in float64; every reported figure is reduced from them."""

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
    """The pooled prediction's quality and the mixture's uncertainty, (B,) each; some are (B, D) with several answers.

    Model uncertainty is left out for a single distribution, and NaN on rows that only one member answers: there it does
    not apply, which differs from 0.
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
    """Each member's own quality and uncertainty, (B, M) each; some are (B, M, D) with several answers per row.

    Values are NaN on rows that a member does not answer.
    """
    rows = task.quality(members, y)
    if y is not None:
        rows["nll"] = members.nll(y).numpy()
    rows["total_uncertainty"] = rows["data_uncertainty"] = task.uncertainty(members).numpy()
    rows |= task.each_uncertainty(members, pooled=False)
    there = who_answers(members)
    return rows if there is None else {name: _where(there.numpy(), values) for name, values in rows.items()}


def fidelity_rows(ensemble: Predictive, student: Predictive) -> Values:
    """How near the student is to the ensemble on each row, (B,) each; KL divergences are in nats.

    `member_kl`, `collapsed_kl` (the `member_kl` that the student's own mean would have as every head) and the three
    sums of deviations (see `fidelity`) need one head per member, and are left out without.

    On a row that some members do not answer, those who do are compared with their own heads; see `matched`. The
    student's own mean is still that of all its heads. Deviations are taken from the mean of those who answer, and are
    NaN if only one does. Members of weight 0 have no deviations.
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
    """Values (B, …) as float64, with NaN where `there`, which has their first dimensions, is False."""
    shaped = there.reshape(*there.shape, *[1] * (values.ndim - there.ndim))
    return np.where(shaped, values.astype(np.float64), np.nan)


def as_targets(labels: Array) -> Tensor:
    """Labels in the form that figures take: classes as int64, targets as float64."""
    y = torch.as_tensor(np.asarray(labels))
    return y.double() if y.is_floating_point() else y.long()


@dataclass(frozen=True)
class Answers:
    """Some rows of a source as single answers: one per row, or one per position that counts.

    Attributes:
        task: the task.
        of_all: the labels of all rows of the source; None if there are none.
        rows: the range of these rows.
    """

    task: Task
    of_all: Array | None
    rows: range

    @property
    def _of_rows(self) -> Tensor | None:
        return None if self.of_all is None else as_targets(self.of_all[self.rows.start : self.rows.stop])

    def of(self, said: Tensor) -> Tensor:
        """Outputs for the rows, (B, M, *shape), as outputs for single answers, (A, M, W)."""
        return self.task.each_answer(said, self._of_rows)

    @property
    def of_row(self) -> Tensor:
        """The row of each answer, (A,)."""
        return self.task.each_of_row(torch.arange(self.rows.start, self.rows.stop), self._of_rows)

    @property
    def labels(self) -> Tensor | None:
        """The label of each answer; None if there are none."""
        labels = self._of_rows
        return None if labels is None else self.task.each_label(labels, labels)


def concatenate(parts: Iterable[Values]) -> Values:
    """Batches of values, joined end to end."""
    grown = GrownValues()
    for part in parts:
        grown.add(part)
    return grown.all()


def prefixed(name: str, rows: Mapping[str, NDArray[np.float64]]) -> Values:
    return {f"{name}_{key}": values for key, values in rows.items()}
