"""The members as they are, in bfloat16: three times faster on a CPU that multiplies it."""

from typing import Any

import torch
from teachers.model import make_teacher
from torch import Tensor, nn


class Fast(nn.Module):
    """A member whose checkpoint is independent of this wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.member = make_teacher().to(memory_format=torch.channels_last)

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return self.member.load_state_dict(state, strict, assign)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.member.state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.member(x.contiguous(memory_format=torch.channels_last)).float()


def make_fast() -> nn.Module:
    """A ResNet-8 that maps images (B, 3, 32, 32) to logits (B, 10)."""
    return Fast()
