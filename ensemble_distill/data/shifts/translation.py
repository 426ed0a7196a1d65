"""Cyclic translation to the right by a share of the width, in whole pixels: what leaves right enters left.

Ovadia et al. 2019 (arXiv:1906.02530) move MNIST in this way, and Hydra (Tran et al. 2020, arXiv:2001.04694) moves MNIST
and CIFAR-10.
"""

from __future__ import annotations

import numpy as np

from ensemble_distill.data.shifts import Origin
from ensemble_distill.data.source import Array, Kind

KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
AMOUNTS: dict[Kind, tuple[float, ...]] = dict.fromkeys(KINDS, (10, 20, 30, 40, 50))  # per cent of the width


def level(amount: float, kind: Kind) -> str:
    return f"{amount} %"


def apply(x: Array, amount: float, origin: Origin) -> Array:
    return np.roll(x, round(x.shape[2] * amount / 100), axis=2)
