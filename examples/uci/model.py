"""The networks: members with two hidden layers of 100, and a student body with one hidden layer of 50."""

from torch import nn


def make_teacher(inputs: int, width: int = 100, dropout: float = 0.0) -> nn.Module:
    """A member, from features (B, inputs) to mean and log-variance (B, 2) of the standardized target.

    Dropout is active only in training.
    """
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, 2),
    )


def make_body(inputs: int, width: int = 50) -> nn.Module:
    """A body, from features (B, inputs) to features (B, width)."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU())


def make_whole(inputs: int, width: int = 100) -> nn.Module:
    """A body, from features (B, inputs) to features (B, width): a member without its last layer."""
    layers = list(make_teacher(inputs, width).children())
    return nn.Sequential(*layers[:-1])
