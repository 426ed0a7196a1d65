"""The noise floor of model uncertainty: one half of the ensemble's members against the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.evaluation.fidelity import spread_figures
from ensemble_distill.predictive.answered import answering
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runtime.keys import permutation
from ensemble_distill.tasks.figures import Figures, Values

SPLITS = 5
FEWEST = 4  # members: a half of fewer than two has no model uncertainty

Half = tuple[int, ...]  # positions of members


def halves(members: Sequence[int]) -> list[tuple[Half, Half]]:
    """`SPLITS` random splits of members into two equal halves, the same ones every time; one of an odd number is left
    out, another time another one. Empty where there are fewer than `FEWEST` members.

    Args:
        members: the positions of those that are part of the ensemble, whose weight is not 0.
    """
    if len(members) < FEWEST:
        return []
    half = len(members) // 2
    found = []
    for split in range(SPLITS):
        order = [members[at] for at in permutation(len(members), "halves", split)]
        found.append((tuple(sorted(order[:half])), tuple(sorted(order[half : 2 * half]))))
    return found


def halves_rows(pairs: Iterable[Sequence[Predictive]]) -> Values:
    """The model uncertainty of the two halves of each split: `first` and `second`, each (B, S). NaN where one member of
    a half answers, or nobody does."""
    found = [[_model(half) for half in pair] for pair in pairs]
    first, second = (torch.stack(list(side), dim=1).numpy() for side in zip(*found, strict=True))
    return {"first": first, "second": second}


def _model(half: Predictive) -> Tensor:
    model, several = half.summary().model, answering(half)
    return model if several is None else torch.where(several > 1, model, torch.nan)


def halves_figures(rows: Mapping[str, NDArray[np.float64]], unit: float) -> Figures:
    """l1, ratio and Spearman of the first half's model uncertainty against the second's, each the mean over the splits.

    It is what an ensemble of the same kind, independent and half as large, gets against one: the smaller halves are
    noisier than the whole, so that a good student can be better. None where it is of any split.
    """
    splits = [spread_figures(a, b, unit) for a, b in zip(rows["first"].T, rows["second"].T, strict=True)]
    found: Figures = {}
    for name in splits[0]:
        known = [value for figures in splits if (value := figures[name]) is not None]
        found[name] = float(np.mean(known)) if len(known) == len(splits) else None
    return found
