"""Functions that keep digits where the plain ones lose them, and that exported graphs compute identically."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-300  # float64 probabilities are at least this before ln, so that 0 gives a finite number


def log_plus(x: Tensor) -> Tensor:
    """ln(1 + eˣ); torch's softplus is off by 2e-9 above 20, and its logaddexp, exported, overflows at 89."""
    return torch.maximum(x, torch.zeros_like(x)) + torch.log1p((-x.abs()).exp())


def logsigmoid(z: Tensor) -> Tensor:
    """ln σ(z); torch's own exports as the logarithm of a sigmoid, which onnxruntime rounds to 0 early."""
    return -log_plus(-z)
