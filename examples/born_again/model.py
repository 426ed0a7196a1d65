"""The networks of Born-Again Networks (Furlanello et al. 2018, arXiv:1805.04770), for both teachers and students.

`classes=0` makes a body, which maps images (B, 3, H, W) to features (B, F); `classes=K` adds a linear `classifier`, as
members have. H and W must be multiples of 4.
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
    ratio: float = 1.0,
    squeezed: bool = False,
) -> nn.Module:
    """DenseNet-BC for CIFAR (Huang et al. 2017, arXiv:1608.06993).

    With twice the units at half the growth and the same `stem`, every hidden state keeps its size at another depth. So
    it does with another `ratio`, which only makes the blocks narrower or wider.

    Args:
        depth: each of the three dense blocks has (depth - 4) // 6 bottleneck units.
        growth: channels added by each unit.
        compression: share of a dense block's channels that the following transition keeps.
        stem: channels of the first convolution, 2 × growth by default.
        ratio: of the channels within the blocks to those at 1.0, by a projection into and out of each block.
        squeezed: whether the last block's channels are compressed too, as the counts of Born-Again Networks imply.
    """
    units = _units(depth)
    first = channels = inside = stem or 2 * growth
    stages: list[nn.Module] = []
    for stage in range(3):
        layers: list[nn.Module] = []
        if stage:
            channels = int(channels * compression)
            layers.append(Transition(inside, channels))
        inside = int(channels * ratio)
        if ratio != 1:
            layers.append(Projection(channels, inside))
        for _ in range(units):
            layers.append(DenseUnit(inside, int(growth * ratio)))
            inside += int(growth * ratio)
        channels += units * growth
        if stage == 2 and squeezed:
            channels = int(channels * compression)
        if stage == 2 and (squeezed or ratio != 1):
            layers.append(Projection(inside, channels))
        stages.append(nn.Sequential(*layers))
    return Network(first, stages, channels, classes)


def wide_resnet(depth: int = 16, width: int = 1, classes: int = 0) -> nn.Module:
    """Wide residual network with pre-activation (Zagoruyko & Komodakis 2016, arXiv:1605.07146), without dropout.

    Args:
        depth: each of the three groups has (depth - 4) // 6 basic units.
        width: factor on the groups' 16, 32 and 64 channels.
    """
    units = _units(depth)
    channels, stages = 16, []
    for stage, out in enumerate((16 * width, 32 * width, 64 * width)):
        stages.append(nn.Sequential(*_residual(units, channels, out, "basic", stride=2 if stage else 1)))
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
    """The teacher's DenseNet-BC with residual units in place of its dense blocks.

    The first convolution, the output layer and the output of each transition have the teacher's shapes. The paper gives
    no layout. Of those tried, only this one matches its counts for all four networks with basic blocks; no layout that
    does also matches the two with bottlenecks, which here have the usual quarter of the unit's width.

    Args:
        units: residual units in place of each dense block.
        ratio: of their channels to those of the teacher's dense block after its transition.
        block: "bottleneck" (the paper's Pre) or "basic", two convolutions of 3 × 3 (the paper's Wide).
        squeezed: as for the teacher.
    """
    if units < 1:
        raise ValueError(f"units is {units}. Use 1 or more.")
    grown = teacher_growth * _units(teacher_depth)
    first = channels = teachers = 2 * teacher_growth
    stages: list[nn.Module] = []
    for stage in range(3):
        layers: list[nn.Module] = []
        if stage:
            teachers //= 2
            layers.append(Transition(channels, teachers))
            channels = teachers
        teachers += grown
        out = int(teachers // 2 * ratio)
        layers += _residual(units, channels, out, block)
        channels = out
        if stage == 2:
            teachers = teachers // 2 if squeezed else teachers
            layers.append(Projection(channels, teachers))
        stages.append(nn.Sequential(*layers))
    return Network(first, stages, teachers, classes)


class Network(nn.Module):
    """A first convolution, stages, normalization, and the average over all positions."""

    def __init__(self, first: int, stages: Sequence[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv(3, first, 3)
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(features)
        if classes:
            self.classifier = nn.Linear(features, classes)
            nn.init.zeros_(self.classifier.bias)
        self.classes = classes
        # this layout makes a training step on a CPU a fifth faster
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        x = F.relu(self.norm(x)).mean((2, 3))
        logits: Tensor = self.classifier(x) if self.classes else x
        return logits


class DenseUnit(nn.Module):
    """The input, concatenated with `growth` channels computed from it through a bottleneck of four times as many."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), _conv(channels, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        grown = self.conv1(F.relu(self.norm1(x)))
        grown = self.conv2(F.relu(self.norm2(grown)))
        return torch.cat((x, grown), 1)


class Projection(nn.Module):
    """A change of channels at every position."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), _conv(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.conv(F.relu(self.norm(x)))
        return projected


class Transition(Projection):
    """A change of channels, at half the resolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class ResidualUnit(nn.Module):
    """A unit with normalization and activation before each convolution (He et al. 2016, arXiv:1603.05027).

    Where it changes the shape, the shortcut is a convolution of the activated input.
    """

    def __init__(self, channels: int, out: int, block: Block, stride: int = 1) -> None:
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


def _residual(units: int, channels: int, out: int, block: Block, stride: int = 1) -> list[nn.Module]:
    later: list[nn.Module] = [ResidualUnit(out, out, block) for _ in range(units - 1)]
    return [ResidualUnit(channels, out, block, stride), *later]


def _units(depth: int) -> int:
    """Units per block; the paper's depths of 80 and 90 do not divide evenly, so the remainder is dropped."""
    units = (depth - 4) // 6
    if units < 1:
        raise ValueError(f"depth is {depth}, which is too little for a unit in each of three blocks. Use 10 or more.")
    return units


def _conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, size, stride, size // 2, bias=False)
    # He et al. 2015 (arXiv:1502.01852), by the fan-out of a convolution, as the authors of both papers do
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
