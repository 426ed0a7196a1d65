"""A member's body whose heads read every stage: what the heads can read matters more than how they compute."""

import torch
from teachers.model import ResNet8
from torch import Tensor, nn
from torch.nn import functional as F


class Body(nn.Module):
    """A ResNet-8 without its classifier, with the mean of each stage over the picture as features.

    The last stage also gives its maximum, the means of its quarters, and the mean and maximum of `tail` further
    channels, which cost little on such small maps. Features are normalized, since those of different stages differ in
    scale.
    """

    def __init__(self, width: int, tail: int) -> None:
        super().__init__()
        member = ResNet8(width=width)
        self.stem, self.stages = member.stem, member.stages
        self.tail = nn.Sequential(nn.Conv2d(4 * width, tail, 1, bias=False), nn.BatchNorm2d(tail), nn.ReLU())
        self.norm = nn.BatchNorm1d(27 * width + 2 * tail, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x.mean((2, 3)))
        features += [F.adaptive_max_pool2d(x, 1).flatten(1), F.adaptive_avg_pool2d(x, 2).flatten(1)]
        last = self.tail(x)
        features += [last.mean((2, 3)), F.adaptive_max_pool2d(last, 1).flatten(1)]
        return self.norm(torch.cat(features, dim=1).float())


def make_body(width: int = 16, tail: int = 512) -> nn.Module:
    """Images (B, 3, 32, 32) to features (B, 27 × width + 2 × tail)."""
    return Body(width, tail)
