"""The networks of Born-Again Networks (Furlanello et al. 2018, arXiv:1805.04770), for teachers and students alike.

`classes=0` makes a body, images (B, 3, H, W) to features (B, F); `classes=K` puts a linear `classifier` behind it, as
members have. H and W are multiples of 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Block = Literal["bottleneck", "basic"]


def densenet_bc(
    depth: int = 22,
    growth: int = 12,
    compression: float = 0.5,
    classes: int = 0,
    stem: int | None = None,
    squeezed: bool = False,
) -> nn.Module:
    """DenseNet-BC for CIFAR (Huang et al. 2017, arXiv:1608.06993).

    Args:
        depth: each of the three dense blocks has (depth - 4) // 6 bottleneck units.
        growth: channels that a unit adds.
        compression: of a dense block's channels, the share that the transition after it keeps.
        stem: channels of the first convolution, 2 × growth by default.
        squeezed: whether the last block's channels are compressed too.
    """
    units = _units(depth)
    first = channels = stem or 2 * growth
    stages: list[nn.Module] = []
    for stage in range(3):
        layers: list[nn.Module] = []
        if stage:
            kept = int(channels * compression)
            layers.append(Transition(channels, kept))
            channels = kept
        for _ in range(units):
            layers.append(DenseUnit(channels, growth))
            channels += growth
        if stage == 2 and squeezed:
            kept = int(channels * compression)
            layers.append(Projection(channels, kept))
            channels = kept
        stages.append(nn.Sequential(*layers))
    return Network(first, stages, channels, classes)


def wide_resnet(depth: int = 16, width: int = 1, classes: int = 0) -> nn.Module:
    """Wide residual network with pre-activation (Zagoruyko & Komodakis 2016, arXiv:1605.07146), without dropout.

    Args:
        depth: each of the three groups has (depth - 4) // 6 basic units.
        width: how many times wider than 16, 32 and 64 channels the groups are.
    """
    units = _units(depth)
    channels, stages = 16, []
    for stage, out in enumerate((16 * width, 32 * width, 64 * width)):
        stages.append(_residual(units, channels, out, "basic", stride=2 if stage else 1))
        channels = out
    return Network(16, stages, channels, classes)


def ban_resnet(
    units: int = 3,
    ratio: float = 1.0,
    block: Block = "bottleneck",
    teacher_depth: int = 90,
    teacher_growth: int = 60,
    classes: int = 0,
    squeezed: bool = False,
) -> nn.Module:
    """A DenseNet-BC, the teacher, with residual units in the place of its dense blocks.

    The first convolution and the output layer are the teacher's in shape, and so is what each transition leaves.

    Args:
        units: residual units in the place of each dense block.
        ratio: of their channels, to those that are left of the teacher's dense block after its transition.
        block: "bottleneck" (the paper's Pre) or "basic", two convolutions of 3 × 3 (the paper's Wide).
        squeezed: whether the teacher is.
    """
    grown = teacher_growth * _units(teacher_depth)
    first = channels = 2 * teacher_growth
    teachers, stages = channels, []  # the teacher's channels up to here
    for stage in range(3):
        layers: list[nn.Module] = []
        if stage:
            teachers = teachers // 2
            layers.append(Transition(channels, teachers))
            channels = teachers
        teachers += grown
        out = int(teachers // 2 * ratio)
        layers += _residual(units, channels, out, block, stride=1)
        channels = out
        if stage == 2:
            teachers = teachers // 2 if squeezed else teachers
            layers.append(Projection(channels, teachers))
        stages.append(nn.Sequential(*layers))
    return Network(first, stages, teachers, classes)


class Network(nn.Module):
    """A first convolution, stages, and the average over all places of what the last one leaves, normalized."""

    def __init__(self, first: int, stages: Sequence[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv(3, first, 3)
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(features)
        if classes:
            self.classifier = nn.Linear(features, classes)
            nn.init.zeros_(self.classifier.bias)
        self.classes = classes
        # on a CPU a training step takes a fifth less time in this layout
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        x = F.relu(self.norm(x)).mean((2, 3))
        logits: Tensor = self.classifier(x) if self.classes else x
        return logits


class DenseUnit(nn.Module):
    """Its input, and `growth` channels made of it through a bottleneck of four times as many."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), _conv(channels, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        grown = self.conv1(F.relu(self.norm1(x)))
        grown = self.conv2(F.relu(self.norm2(grown)))
        return torch.cat((x, grown), 1)


class Projection(nn.Module):
    """Other channels at every place."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), _conv(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.conv(F.relu(self.norm(x)))
        return projected


class Transition(Projection):
    """Other channels, at half the resolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class ResidualUnit(nn.Module):
    """A unit whose convolutions are each preceded by normalization and activation (He et al. 2016, arXiv:1603.05027).

    Where it changes the shape, the shortcut is a convolution of the activated input.
    """

    def __init__(self, channels: int, out: int, block: Block, stride: int) -> None:
        super().__init__()
        inner = out if block == "basic" else out // 4
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(inner)
        if block == "basic":
            self.conv1, self.conv2 = _conv(channels, inner, 3, stride), _conv(inner, out, 3)
        else:
            self.conv1, self.conv2 = _conv(channels, inner, 1), _conv(inner, inner, 3, stride)
            self.norm3, self.conv3 = nn.BatchNorm2d(inner), _conv(inner, out, 1)
        self.bottleneck = block == "bottleneck"
        self.projects = stride > 1 or channels != out
        if self.projects:
            self.shortcut = _conv(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        shortcut = self.shortcut(activated) if self.projects else x
        y = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        if self.bottleneck:
            y = self.conv3(F.relu(self.norm3(y)))
        total: Tensor = shortcut + y
        return total


def _residual(units: int, channels: int, out: int, block: Block, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(ResidualUnit(out if unit else channels, out, block, 1 if unit else stride) for unit in range(units))
    )


def _units(depth: int) -> int:
    """A block; the paper's depths of 80 and 90 are between two that come out even, so the rest is let go of."""
    units = (depth - 4) // 6
    if units < 1:
        raise ValueError(f"depth is {depth}, which is too little for a unit in each of three blocks. Use 10 or more.")
    return units


def _conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, size, stride, size // 2, bias=False)
    # He et al. 2015 (arXiv:1502.01852), by what goes out of a convolution, as both papers' authors initialize theirs
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
