"""An easy fake of an ensemble: a student's mean plus constant random offsets, one per head."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from scipy.optimize import brentq
from torch import Tensor

from ensemble_distill.evaluation.rows import concatenate, fidelity_rows
from ensemble_distill.evaluation.ties import ROUNDING
from ensemble_distill.predictive.answered import answering
from ensemble_distill.predictive.gaussian_vector import GaussianVectorFamily
from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.runtime.grown import Grown
from ensemble_distill.runtime.keys import normals
from ensemble_distill.tasks.figures import Values

LIMIT = 2**22  # numbers kept of the members' outputs, 32 MiB: 8,000 rows of 50 members and 10 classes
CHUNK = 2**20  # numbers processed at once
DRAWS = 8  # the best of them is used, since draws for few members differ
SAMPLE = 2**18  # numbers on which the best draw is chosen
STEP, STEPS = 0.05, 8  # first step of the scale's logarithm from a guess, and the number of steps, each twice the last


class Offsets:
    """Collects rows, and measures each student's fake on them.

    For classes, head m of the fake predicts ln q̄ + s·o_m, where q̄ are the mean probabilities of the student's heads,
    and o_m, (K,), is drawn from a standard normal distribution. For regression, it predicts N(μ̄ + s·o_m, σ̄²), from the
    moments of the student's mixture. The o_m are the same for every row, and s makes the mean model uncertainty equal
    to the ensemble's. Of `DRAWS` such fakes, the one with the lowest l1 is used: the best that a fake can be without
    knowing the members.

    This takes several passes over the rows, so they are kept in memory: all of them, or evenly spaced ones if they have
    more than `limit` numbers. If some members do not answer every row, the rows that several members answer are kept,
    and the fake uses the heads of those members.

    Args:
        family: the family of the members' outputs.
        pooling: makes the joint prediction from the outputs (B, M, W) of as many members.
        rows: the number of rows to come.
        limit: the most numbers to keep.
    """

    def __init__(self, family: Family, pooling: Callable[[Tensor], Predictive], rows: int, limit: int = LIMIT) -> None:
        self._family, self._pooling, self._expected, self._limit = family, pooling, rows, limit
        self._outputs = Grown()
        self._added = 0
        self._means: dict[int, Grown] = defaultdict(Grown)

    def add(self, outputs: Tensor, students: Mapping[int, Predictive]) -> None:
        """Add the members' outputs (B, M, W) and the students' predictions for the next rows."""
        stride = -(-self._expected * outputs[0].numel() // self._limit)
        kept = torch.arange(-self._added % stride, len(outputs), stride)
        self._added += len(outputs)
        several = answering(self._pooling(outputs))
        if several is not None:
            kept = kept[several[kept] > 1]
        self._outputs.add(outputs[kept])
        for student, predictive in students.items():
            if predictive.has_model_uncertainty:
                mean = self._family.raw(predictive.mixture())[kept]  # (B, 1, W)
                if several is not None:
                    mean = torch.where(outputs[kept].isnan(), torch.nan, mean)
                self._means[student].add(mean)

    @torch.no_grad()
    def rows(self) -> dict[int, Values]:
        """For each student with model uncertainty, the values of its fake.

        They are `fidelity_rows` of the fake, its `model_uncertainty`, and that of the `ensemble` on the same rows. A
        student is left out if no scale gives the ensemble's model uncertainty: if that is 0, or nearly as large as that
        of members that are sure of different classes.
        """
        outputs = torch.from_numpy(self._outputs.all())
        if not len(outputs):
            return {}
        said = [self._pooling(part).summary() for part in self._chunks(outputs)]
        uncertainty, total = (torch.cat(each) for each in zip(*((s.model, s.total) for s in said), strict=True))
        if uncertainty.mean() <= ROUNDING * total.mean():
            return {}
        draws = [self._drawn(outputs, draw) for draw in range(DRAWS)]
        found: dict[int, Values] = {}
        for student, grown in self._means.items():
            mean = torch.from_numpy(grown.all())
            best, guess = self._best(mean, draws, uncertainty)
            drawn = draws[best]
            scale = self._scale(mean, drawn, float(uncertainty.mean()), guess)
            if scale is not None:
                pieces = zip(self._chunks(outputs), self._chunks(mean, outputs), strict=True)
                found[student] = concatenate(self._faked(*piece, scale * drawn) for piece in pieces)
        return found

    def _drawn(self, outputs: Tensor, draw: int) -> Tensor:
        """Offsets of scale 1, (1, M, W). For regression, only the means move, the first of a member's outputs; several
        targets move by as many of their standard deviations."""
        drawn = torch.from_numpy(normals((1, *outputs.shape[1:]), "offsets", draw)).to(outputs)
        means = self._pooling(outputs[:1]).means().shape[-1]
        drawn[..., means:] = 0
        if isinstance(self._family, GaussianVectorFamily):
            drawn[..., :means] *= drawn.new_tensor(self._family.unit)
        return drawn

    def _best(self, mean: Tensor, draws: Sequence[Tensor], uncertainty: Tensor) -> tuple[int, float | None]:
        """The draw with the lowest l1 on evenly spaced rows, and its scale.

        It is the first one if all draws do equally well, as for regression.
        """
        stride = -(-len(mean) * draws[0].numel() // SAMPLE)
        mean, uncertainty = mean[::stride], uncertainty[::stride]
        scales = [self._scale(mean, drawn, float(uncertainty.mean())) for drawn in draws]
        found = []
        for drawn, scale in zip(draws, scales, strict=True):
            if scale is None:
                found.append(math.inf)
            else:
                theirs = self._pooling(mean + scale * drawn).summary().model
                found.append(round(float((theirs - uncertainty).abs().sum() / uncertainty.sum()), 6))
        best = found.index(min(found))
        return best, scales[best]

    def _faked(self, outputs: Tensor, mean: Tensor, offsets: Tensor) -> Values:
        ensemble, fake = self._pooling(outputs), self._pooling(mean + offsets)
        uncertainties = {"ensemble": ensemble.summary().model, "model_uncertainty": fake.summary().model}
        return fidelity_rows(ensemble, fake) | {name: values.numpy() for name, values in uncertainties.items()}

    def _scale(self, mean: Tensor, drawn: Tensor, wanted: float, guess: float | None = None) -> float | None:
        """The scale at which offsets give the fake a mean model uncertainty of `wanted`; None if there is none.

        A bracket is found around a guess, and the scale within it. Model uncertainty grows as the square of the scale
        while it is small, and for regression always, which gives the default guess.
        """

        def uncertainty(scale: float) -> float:
            parts = [self._pooling(part + scale * drawn).summary().model for part in self._chunks(mean, drawn)]
            return float(torch.cat(parts).mean())

        def excess(log_scale: float) -> float:
            return uncertainty(math.exp(log_scale)) / wanted - 1

        if guess is None:
            unscaled = uncertainty(1.0)
            if min(unscaled, wanted) <= 0:
                return None
            guess = math.sqrt(wanted / unscaled)
        near = math.log(guess)
        at = excess(near)
        for step in range(STEPS):
            far = near + math.copysign(STEP * 2**step, -at)
            there = excess(far)
            if at * there <= 0:
                return math.exp(brentq(excess, near, far, xtol=1e-6))
            near, at = far, there
        return None

    @staticmethod
    def _chunks(rows: Tensor, like: Tensor | None = None) -> Iterator[Tensor]:
        """Rows in chunks of about `CHUNK` numbers, or in chunks of as many rows as those of a wider `like`."""
        size = max(1, CHUNK // (rows if like is None else like)[0].numel())
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
