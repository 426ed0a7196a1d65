"""Gaussian blur whose standard deviation is a share of the shorter side, so that it looks alike at every size.

ImageNet-C blurs by 1, 2, 3, 4 and 6 of 224 pixels, CIFAR-10-C by .4, .6, .7, .8 and 1 of 32 (Hendrycks & Dietterich
2019, arXiv:1903.12261), which is .4 to 2.7 % and 1.2 to 3.1 %. On stripes a pixel wide, .4 pixels leave 84 % of the
contrast, and 2 % of 32 pixels leaves 26 %. That is visible, so the severities start there and go on in equal steps.
"""

from __future__ import annotations

from scipy import ndimage

from ensemble_distill.data.shifts import Origin
from ensemble_distill.data.source import Array, Kind

KINDS: frozenset[Kind] = frozenset({"pixels", "tensor"})
AMOUNTS: dict[Kind, tuple[float, ...]] = dict.fromkeys(KINDS, (2, 3, 4, 5, 6))  # per cent of the shorter side


def level(amount: float, kind: Kind) -> str:
    return f"{amount} %"


def apply(x: Array, amount: float, origin: Origin) -> Array:
    std = min(x.shape[1:]) * amount / 100
    blurred: Array = ndimage.gaussian_filter(x, (0, std, std), mode="nearest")  # borders repeated, as ImageNet-C does
    return blurred
