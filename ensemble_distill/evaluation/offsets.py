"""The easy fake of an ensemble: a student's mean with constant random offsets, one for each head."""

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
from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.runtime.grown import Grown
from ensemble_distill.runtime.keys import normals
from ensemble_distill.tasks.figures import Values

LIMIT = 2**22  # numbers of the members that are kept, 32 MiB: 8,000 rows of 50 members and 10 classes
CHUNK = 2**20  # numbers in flight at once
DRAWS = 8  # of which the best is taken: those of few members are not alike
SAMPLE = 2**18  # numbers that it is chosen on
STEP, STEPS = 0.05, 8  # of the logarithm of the scale from the first guess, each twice as long as the last


class Offsets:
    """Collects rows, and tells what each student's fake is on them.

    The fake's head m says ln q̄ + s·o_m for classes, with q̄ the mean probabilities of the student's heads and o_m (K,)
    drawn from a standard normal distribution; of regression it says N(μ̄ + s·o_m, σ̄²), from the moments of the student's
    mixture. The o_m are the same for every row, and s is such that the mean model uncertainty is the ensemble's. Of
    `DRAWS` such fakes the one of the least l1 is taken: as good as a fake gets that knows nothing of the members.
    More than one pass over the rows is needed, so they are kept: all of them, or evenly spread ones where they are more
    than `limit` numbers. Of rows that some members do not answer those are kept that several do, and the fake's heads
    of these members are asked.

    Args:
        family: of the members' outputs.
        pooling: outputs (B, M, W) of as many members to the prediction that they make together.
        rows: how many will come.
    """

    def __init__(self, family: Family, pooling: Callable[[Tensor], Predictive], rows: int, limit: int = LIMIT) -> None:
        self._family, self._pooling, self._expected, self._limit = family, pooling, rows, limit
        self._outputs = Grown()
        self._added = 0
        self._means: dict[int, Grown] = defaultdict(Grown)

    def add(self, outputs: Tensor, students: Mapping[int, Predictive]) -> None:
        """Outputs (B, M, W) of the members on the next rows, and what the students say there."""
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
        """Of each student that has a model uncertainty: `fidelity_rows` of its fake, and the `model_uncertainty` of the
        fake beside that of the `ensemble` on the same rows.

        A student is left out where no scale gives the ensemble's model uncertainty: where that is 0, or nearly as large
        as that of members which are sure of different classes.
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
        """Offsets (1, M, W) of scale 1. Of regression they move the means alone, the first of a member's outputs."""
        drawn = torch.from_numpy(normals((1, *outputs.shape[1:]), "offsets", draw)).to(outputs)
        drawn[..., self._pooling(outputs[:1]).means().shape[-1] :] = 0
        return drawn

    def _best(self, mean: Tensor, draws: Sequence[Tensor], uncertainty: Tensor) -> tuple[int, float | None]:
        """Which draw's l1 is the least, and its scale, on evenly spread rows. Where all do equally well, as those of
        regression, it is the first."""
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
        """By which the offsets `drawn` give the fake a mean model uncertainty of `wanted`; None where none does.

        From a guess a bracket is found and, in it, the scale. Model uncertainty grows as the scale's square while it is
        small, of regression always: that is the guess where there is no other.
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
        """Rows in parts of about `CHUNK` numbers, as many rows each as of `like`, which is wider."""
        size = max(1, CHUNK // (rows if like is None else like)[0].numel())
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
