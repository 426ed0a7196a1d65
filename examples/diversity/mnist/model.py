"""Bodies for the students of the study."""

from torch import nn


def make_body(width: int = 200) -> nn.Module:
    """Images (B, 1, 28, 28) to features (B, width): a member without its last layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def make_layer(width: int = 200) -> nn.Module:
    """Images (B, 1, 28, 28) to features (B, width): one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU())
