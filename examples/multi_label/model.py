"""The networks of `make.py`: members with one hidden layer, and a body without the last layer."""

from torch import nn


def make_teacher() -> nn.Module:
    """A member, from features (B, 20) to a logit per label (B, 5)."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))


def make_body() -> nn.Module:
    """A body, from features (B, 20) to features (B, 64): a member without its last layer."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU())
