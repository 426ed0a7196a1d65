"""Pictures and kernels with their channels last, in the order in which convolutions read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_last(module: nn.Module) -> None:
    """Lay out a module's parameters of four dimensions; shapes and values stay. `Module.to` refuses 3-D kernels."""
    for parameter in module.parameters():
        parameter.data = laid_out(parameter.data)


def channels_last_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay out an optimizer's moments as its kernels are, which loading them undoes."""
    for state in optimizer.state.values():
        state.update({key: laid_out(value) for key, value in state.items() if isinstance(value, Tensor)})


def laid_out(x: Tensor) -> Tensor:
    """A tensor (B, C, H, W) with its channels last; any other as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
