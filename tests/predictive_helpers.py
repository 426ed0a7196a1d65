"""Logits, labels and weights of members, for classes and for positions."""

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.protocol import Average

Floats = NDArray[np.float64]
SHAPES = {"classes": (5, 4, 3), "positions": (3, 4, 2, 6)}  # (B, M, K) and (B, M, L, K)
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
RNG = np.random.default_rng(0)
LOGITS = {name: RNG.normal(scale=3, size=shape) for name, shape in SHAPES.items()}
OTHERS = {name: RNG.normal(scale=3, size=shape) for name, shape in SHAPES.items()}
LABELS = {"classes": RNG.integers(0, 3, (5,)), "positions": RNG.integers(0, 6, (3, 2))}


def categorical(logits: Floats, weights: Floats | None = None, average: Average = "probabilities") -> Categorical:
    return Categorical(torch.tensor(logits), None if weights is None else torch.tensor(weights), average)


def shares(weights: Floats | None, members: int = 4) -> Floats:
    return np.full(members, 1 / members) if weights is None else weights
