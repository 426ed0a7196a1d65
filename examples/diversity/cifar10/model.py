"""The members' own architecture without its classifier: the student is one member with ten heads."""

from teachers.model import ResNet8
from torch import nn


def make_body(width: int = 16) -> nn.Module:
    """Images (B, 3, 32, 32) to features (B, 4 × width)."""
    module = ResNet8(width=width)
    module.head = nn.Identity()
    return module
