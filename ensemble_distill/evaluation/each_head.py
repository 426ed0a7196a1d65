"""What a report shows of single heads and rows: how near each head is, and the rows on which a student is farthest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.predictive.answered import matched
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.predictive.weighted import over_members

MOST = 6  # rows that are shown


@dataclass(frozen=True)
class Farthest:
    """A row whose prediction is far from the ensemble's.

    Attributes:
        row: its index.
        mean_kl: KL(ensemble ‖ student) of the pooled predictions, nats.
        ensemble, student: (K,), expectations of the pooled predictions; for classes, their probabilities.
        members, heads: (M, K) and (H, K), the expectations of each; NaN for members that do not answer the row or have
            weight 0.
    """

    row: int
    mean_kl: float
    ensemble: NDArray[np.float64]
    student: NDArray[np.float64]
    members: NDArray[np.float64]
    heads: NDArray[np.float64]


@dataclass(frozen=True)
class EachHead:
    """The heads of one student, and the rows on which it is farthest from the ensemble.

    Attributes:
        kl: (M,), KL(member ‖ its head) in nats, averaged over the rows that the member answers; NaN for a member that
            answers none or has weight 0. None if the student does not have one head per member.
        collapsed_kl: (M,), the same if each head predicted the mean of all heads, KL(member ‖ mean of all heads).
        farthest: the rows on which the student is farthest off, the farthest first; empty if rows have positions.
    """

    kl: NDArray[np.float64] | None
    collapsed_kl: NDArray[np.float64] | None
    farthest: tuple[Farthest, ...]


class HeadByHead:
    """Collects the figures of one student's heads, batch by batch."""

    def __init__(self) -> None:
        self._kl: Tensor | None = None  # (2, M): to each member's own head, and to the mean of all heads
        self._count: Tensor | float = 0.0
        self._farthest: list[Farthest] = []

    def add(self, rows: Tensor, ensemble: Predictive, student: Predictive) -> None:
        """Add A answers.

        Args:
            rows: (A,), the row of each answer.
            ensemble, student: the predictions for these answers.
        """
        if student.members == ensemble.members > 1:
            there, kl = _counts(ensemble), torch.stack([ensemble.kl(student), ensemble.kl(student.mixture())])
            kl = kl if there is None else torch.where(there, kl, 0.0)
            self._kl = kl.sum(1) if self._kl is None else self._kl + kl.sum(1)
            self._count = self._count + (len(kl[0]) if there is None else there.expand_as(kl[0]).sum(0).double())
        if len(set(rows.tolist())) == len(rows):  # rows have a single answer
            self._keep(rows, ensemble, student)

    def _keep(self, rows: Tensor, ensemble: Predictive, student: Predictive) -> None:
        theirs, own = ensemble.pooled(), matched(student, ensemble).pooled()
        apart = theirs.kl(own)[:, 0]
        least = self._farthest[-1].mean_kl if len(self._farthest) == MOST else -1.0
        found = [int(at) for at in apart.topk(min(MOST, len(apart))).indices if float(apart[at]) > least]
        if found:
            each, there = ensemble.means(), _counts(ensemble)
            each = each if there is None else torch.where(over_members(there, each), each, torch.nan)
            # indexing copies these rows: views would keep the whole batch in memory
            pooled = (theirs.means()[found, 0], own.means()[found, 0])
            said = [of.numpy() for of in (*pooled, each[found], student.means()[found])]
            more = [
                Farthest(int(rows[at]), float(apart[at]), *(of[place] for of in said)) for place, at in enumerate(found)
            ]
            self._farthest = sorted([*self._farthest, *more], key=lambda each: (-each.mean_kl, each.row))[:MOST]

    def found(self) -> EachHead:
        own, collapsed = (None, None) if self._kl is None else (self._kl / self._count).numpy()
        return EachHead(own, collapsed, tuple(self._farthest))


def _counts(ensemble: Predictive) -> Tensor | None:
    """Whether each member takes part in a prediction, (M,), or (B, M) to differ by row; None if weights are equal."""
    return None if ensemble.weights is None else ensemble.weights > 0
