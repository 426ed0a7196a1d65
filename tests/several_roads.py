"""Members, data and students of two tasks whose rows have several answers: numbers, and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ensemble_distill import (
    load_settings,
)
from ensemble_distill.settings import Settings

ROWS = {"train": 60, "validation": 24, "test": 24, "calibration": 24}
MEMBERS, FEATURES = 4, 3
MODEL = """
import torch
from torch import nn

class Member(nn.Module):
    # pair: means and log-variances as two tensors; end: what the outputs go through last
    def __init__(self, outputs, pair=False, end="none"):
        super().__init__()
        self.linear, self.pair, self.end = nn.Linear(3, outputs), pair, end

    def forward(self, x):
        z = self.linear(x)
        z = {"none": z, "sigmoid": z.sigmoid(), "softmax": z.softmax(1)}[self.end]
        return tuple(z.chunk(2, 1)) if self.pair else z


class Body(nn.Module):
    # the inputs among its features, so that heads can say what linear members do
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, x):
        return torch.cat([x, self.linear(x).relu()], 1)


def make_body():
    return Body()
"""


@dataclass(frozen=True)
class Road:
    """A task with members; `outputs` each says, and what `names` the data has for its columns."""

    task: str
    output: str
    outputs: int
    names: tuple[str, ...]
    figures: tuple[str, ...]

    def labels(self, x: Any, rng: Any) -> Any:
        """(N, D) targets of units a thousand times apart, or (N, K) labels."""
        if self.task == "regression":
            return np.stack([3 + x[:, 0] + 0.3 * rng.normal(size=len(x)), 1000 * (x[:, 1] - x[:, 2])], 1).astype("f4")
        return (x + 0.3 * rng.normal(size=x.shape) > 0.4).astype(np.int64)

    def weights(self, seed: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(seed)
        if self.task == "regression":
            means = np.array([[1.0, 0, 0], [0, 1000.0, -1000.0]])
            weight = np.concatenate([means * (1 + 0.1 * rng.normal(size=means.shape)), np.zeros((2, 3))])
            bias = np.array([3.0, 0.0, np.log(0.1), np.log(100.0**2)])
        else:
            weight, bias = 4 * (np.eye(3) + 0.15 * rng.normal(size=(3, 3))), np.full(3, -1.6)
        return {
            "linear.weight": torch.from_numpy(weight).float(),
            "linear.bias": torch.from_numpy(np.asarray(bias)).float(),
        }


ROADS = {
    "numbers": Road(
        "regression", "mean-logvar", 4, ("heat [kW]", "flow [l/h]"), ("rmse", "rmse.heat", "coverage95.flow")
    ),
    "labels": Road("multi-label", "logits", 3, ("dog", "cat", "boat"), ("brier", "macro_average_precision")),
}


def make(folder: Path, road: Road) -> Path:
    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    for split, rows in ROWS.items():
        x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
        np.savez(folder / "data" / f"{split}.npz", x=x, y=road.labels(x, rng), classes=np.array(road.names))
    (folder / "teachers").mkdir()
    for member in range(MEMBERS):
        save_file(road.weights(member), folder / "teachers" / f"member-{member}.safetensors")
    (folder / "model.py").write_text(MODEL)
    splits = "\n".join(f'{split} = "data/{split}.npz"' for split in ROWS)
    (folder / "edistill.toml").write_text(
        f'task = "{road.task}"\n[teachers]\nmodel = "model.py:Member"\nmodel-kwargs = {{ outputs = {road.outputs} }}\n'
        f'output = "{road.output}"\n[views]\ntransform = "noise+mixup"\ncount = 2\n'
        '[student]\nmodel = "model.py:make_body"\n[train]\nepochs = 30\nbatch-size = 16\nlr = 0.01\ndevice = "cpu"\n'
        f"workers = 0\n[data]\n{splits}\n"
    )
    return folder


def settings(folder: Path, method: str, **options: Any) -> Settings:
    return load_settings(folder, {"train.method": method, **{f"method.{k}": v for k, v in options.items()}})


def rows(folder: Path, split: str) -> tuple[Any, Any]:
    with np.load(folder / "data" / f"{split}.npz") as arrays:
        return arrays["x"], arrays["y"]


def said(folder: Path, road: Road, split: str) -> Any:
    """(N, M, W) what the members say, by NumPy."""
    x, _ = rows(folder, split)
    linear = [road.weights(member) for member in range(MEMBERS)]
    return np.stack([x @ w["linear.weight"].numpy().T + w["linear.bias"].numpy() for w in linear], 1)
