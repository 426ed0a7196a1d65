"""Functions that lose no digits where the plain ones do, and that exported graphs compute alike."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-300  # probabilities below it are 0 in double precision


def log_plus(x: Tensor) -> Tensor:
    """ln(1 + eˣ). Of torch's own two, softplus is off by 2e-9 above 20, and an exported logaddexp overflows at 89."""
    return torch.maximum(x, torch.zeros_like(x)) + torch.log1p((-x.abs()).exp())


def logsigmoid(z: Tensor) -> Tensor:
    """ln σ(z). Exported, torch's own becomes the logarithm of a sigmoid that onnxruntime takes for 0 early."""
    return -log_plus(-z)
