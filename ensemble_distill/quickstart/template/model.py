"""The networks of this folder. Replace them by your own; `edistill.toml` names the two functions."""

from torch import nn


def layers(width: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]


def make_teacher(classes: int = 10, width: int = 64) -> nn.Module:
    """What a checkpoint in teachers/ is loaded into: images (B, 1, 8, 8) to logits (B, classes)."""
    return nn.Sequential(*layers(width), nn.Linear(width, classes))


def make_body(width: int = 64) -> nn.Module:
    """A body of the student, a member without its last layer: images (B, 1, 8, 8) to features (B, width)."""
    return nn.Sequential(*layers(width))
