"""The networks: members with two hidden layers of 200, and a student's body with one, below heads of two more."""

from torch import nn


def make_teacher(width: int = 200) -> nn.Module:
    """A member, from images (B, 1, 28, 28) to logits (B, 10)."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    )


def make_body(width: int = 200) -> nn.Module:
    """A body, from images (B, 1, 28, 28) to features (B, width)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU())
