"""The noise floor of model uncertainty: one half of the members compared with the other."""

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
FEWEST = 4  # members, since a half with fewer than two has no model uncertainty

Half = tuple[int, ...]  # positions of members


def halves(members: Sequence[int]) -> list[tuple[Half, Half]]:
    """`SPLITS` random splits of members into two equal halves, always the same ones.

    Each split of an odd number of members leaves one out at random. Empty if there are fewer than `FEWEST` members.

    Args:
        members: the positions of the members with nonzero weight.
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
    """The model uncertainties of the two halves of each split, `first` and `second`, (B, S) each.

    NaN on rows that fewer than two members of a half answer.
    """
    found = [[_model(half) for half in pair] for pair in pairs]
    first, second = (torch.stack(list(side), dim=1).numpy() for side in zip(*found, strict=True))
    return {"first": first, "second": second}


def _model(half: Predictive) -> Tensor:
    model, several = half.summary().model, answering(half)
    return model if several is None else torch.where(several > 1, model, torch.nan)


def halves_figures(rows: Mapping[str, NDArray[np.float64]], unit: float) -> Figures:
    """l1, ratio and Spearman correlation of the first half's model uncertainty with the second's, averaged over splits.

    These are the figures of one independent ensemble of half the size against another. Halves are noisier than the
    whole, so a good student can be better. A figure is None if it is None for any split.
    """
    splits = [spread_figures(a, b, unit) for a, b in zip(rows["first"].T, rows["second"].T, strict=True)]
    found: Figures = {}
    for name in splits[0]:
        known = [value for figures in splits if (value := figures[name]) is not None]
        found[name] = float(np.mean(known)) if len(known) == len(splits) else None
    return found
