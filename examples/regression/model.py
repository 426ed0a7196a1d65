"""The networks of `make.py`: members with two hidden layers, and a body without the last layer."""

from torch import nn


def make_teacher() -> nn.Module:
    """A member, from features (B, 3) to two means and two log-variances (B, 4) of standardized targets."""
    return nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 4))


def make_body() -> nn.Module:
    """A body, from features (B, 3) to features (B, 48): a member without its last layer."""
    return nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
