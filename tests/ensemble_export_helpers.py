"""Members to export together, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import settings
from torch import Tensor, nn

from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers.network import Network
from ensemble_distill.workflows.export import export

ROWS = {"validation": 12, "test": 10}
FILE = "ensemble/export/model.onnx"


def exported(folder: Path, overrides: Mapping[str, Any] | None = None) -> Path:
    (file,) = export(settings(folder, overrides), ensemble=True, onnx=True).files
    assert file == folder / FILE
    return file


OTHERS = """
import torch
from torch import nn


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x.mul_(2.0)  # in place, as it may
        return self.head(self.conv(x).relu().mean((2, 3)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(36, 3)

    def forward(self, x):
        return self.linear(x.flatten(1)) if x.abs().sum() > 1 else self.linear(x.flatten(1) + 1)


def make(kind="conv"):
    return {
        "conv": Conv,
        "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)),
        "branching": Branching,
    }[kind]()
"""


def opened(
    kinds: Sequence[str], preprocessings: Sequence[Preprocessing | None]
) -> tuple[list[Member], list[nn.Module]]:
    space: dict[str, Any] = {}
    exec(OTHERS, space)
    torch.manual_seed(0)
    modules = [space["make"](kind).eval() for kind in kinds]
    found = [Member(f"m{at}", f"{at}" * 64, preprocessing=p, model="x") for at, p in enumerate(preprocessings)]
    return found, modules


def said_by(members: Sequence[Member], modules: Sequence[nn.Module], shown: Sequence[Tensor]) -> Any:
    every = zip(members, modules, shown, strict=True)
    return np.stack([Network(Classification, *of).answers("test", range(len(x)), x) for *of, x in every], axis=1)
