"""The parameter counts of the paper's networks (Furlanello et al. 2018, tables 1, 4 and 5) and of those in model.py.

Run `python examples/born_again/parameters.py`; tests/test_examples_born_again.py checks its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from model import ban_resnet, densenet_bc, wide_resnet
from torch import nn

SHARED = ("stem", "classifier")


@dataclass(frozen=True)
class Row:
    """One figure of the paper.

    Attributes:
        paper: millions, as printed: the digits show how it is rounded.
        learned: whether only what the student learns is counted, without the layers it shares with its teacher.
        remark: why our count differs.
    """

    table: int
    name: str
    paper: str
    factory: Callable[..., nn.Module]
    arguments: dict[str, Any] = field(hash=False)
    classes: int = 100
    learned: bool = False
    remark: str = ""

    def count(self) -> float:
        """Our count in millions; on the meta device, where even the largest network needs no memory."""
        with torch.device("meta"):
            network = self.factory(**self.arguments, classes=self.classes)
        parts = network.named_children()
        counted = (part for name, part in parts if not (self.learned and name in SHARED))
        return sum(p.numel() for part in counted for p in part.parameters()) / 1e6

    def difference(self) -> float:
        """The relative difference from the paper."""
        return self.count() / float(self.paper) - 1

    def agrees(self) -> bool:
        """Whether our count, rounded or cut to the digits printed, is the printed one: the paper does both."""
        unit = 10.0 ** -len(self.paper.partition(".")[2])
        return -unit / 2 <= self.count() - float(self.paper) < unit


def rows() -> Iterator[Row]:
    for depth, width, paper in ((28, 1, ".38"), (28, 2, "1.48"), (28, 5, "9.16"), (28, 10, "36")):
        arguments: dict[str, Any] = {"depth": depth, "width": width}
        hundred = "with 100 classes; with the 10 of the table's CIFAR-10 they are .37, 1.47, 9.13 and 36.48"
        yield Row(1, f"Wide-ResNet-{depth}-{width}", paper, wide_resnet, arguments, remark=hundred)

    for depth, growth, paper, remark in (
        (112, 33, "6.3", "not found; 17 units a block, not 18, and no compression after the last would have it"),
        (90, 60, "16.1", ""),
        (80, 80, "22.4", ""),
        (80, 120, "50.4", ""),
    ):
        arguments = {"depth": depth, "growth": growth, "squeezed": True}
        yield Row(1, f"DenseNet-{depth}-{growth}", paper, densenet_bc, arguments, classes=10, remark=remark)

    near = "within 1 %, and what is left is not found"
    for factor, units, growth, paper, remark in (
        ("0.5", 7, 120, "21.2", near),
        ("2", 28, 30, "13.7", ""),
        ("3", 42, 20, "12.9", ""),
        ("4", 56, 15, "12.6", ""),
    ):
        arguments = {"depth": 6 * units + 4, "growth": growth, "stem": 120, "squeezed": True}
        yield Row(4, f"DenseNet-90-60, {factor} × depth", paper, densenet_bc, arguments, remark=remark)

    far = "not found: the other two grow by a power of 1.7, so that 31 to 36 would be expected"
    for ratio, paper, remark in ((0.5, "5.1", ""), (0.75, "10.1", ""), (1.5, "80.5", far)):
        arguments = {"depth": 90, "growth": 60, "ratio": ratio, "squeezed": True}
        yield Row(4, f"DenseNet-90-60, {ratio} × compression", paper, densenet_bc, arguments, remark=remark)

    steep = "not found: the paper's two differ by a factor of 2.4, and units of half the channels by one of nearly 4"
    for name, units, part, block, paper in (
        ("Pre-ResNet-14-0.5", 14, 0.5, "bottleneck", "7.3"),
        ("Pre-ResNet-14-1", 14, 1.0, "bottleneck", "17.7"),
        ("Wide-ResNet-1-1", 1, 1.0, "basic", "20.9"),
        ("Match-Wide-ResNet-2-1", 2, 1.0, "basic", "43.1"),
        ("Wide-ResNet-4-0.5", 4, 0.5, "basic", "24.3"),
        ("Wide-ResNet-4-1", 4, 1.0, "basic", "87.3"),
    ):
        arguments = {"units": units, "ratio": part, "block": block, "squeezed": True}
        remark = steep if block == "bottleneck" else ""
        yield Row(5, f"BAN-{name}", paper, ban_resnet, arguments, learned=True, remark=remark)


def main() -> None:
    print("| table | architecture | paper, M | ours, M | difference, % | remark |\n|--:|---|--:|--:|--:|---|")
    for row in rows():
        remark = row.remark or ("" if abs(row.difference()) < 0.001 else "cut or rounded to the digits printed")
        figures = f"{row.paper} | {row.count():.3f} | {100 * row.difference():+.1f}"
        print(f"| {row.table} | {row.name} | {figures} | {remark} |")


if __name__ == "__main__":
    main()
