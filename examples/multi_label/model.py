"""The networks of `make.py`: members of one hidden layer, and a body without its last layer."""

from torch import nn


def make_teacher() -> nn.Module:
    """Features (B, 20) to a logit a label (B, 5)."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))


def make_body() -> nn.Module:
    """Features (B, 20) to features (B, 64): a member without its last layer."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU())
