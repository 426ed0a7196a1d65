"""A folder like that of `tiny`, for numbers: linear members whose means and variances NumPy computes as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from ensemble_distill.data.source import Array

Float64 = NDArray[np.float64]

FEATURES = 3
LEVEL, SPREAD = 454.0, 17.0  # about the mean and the standard deviation of the target
SLOPES = np.array([0.8, -0.5, 0.3]) * SPREAD
NOISE = 4.0  # standard deviation of what no member can know
ROWS = {"train": 40, "validation": 12, "test": 10, "ood/far": 7}
MODEL = """
import torch
from torch import nn


class Member(nn.Module):
    # form: how the mean and what says its spread are returned; variance: whether that is one, or its logarithm;
    # offset: of the mean
    def __init__(self, form="joined", variance=False, offset=0.0):
        super().__init__()
        self.mean, self.log_variance = nn.Linear(3, 1), nn.Linear(3, 1)
        self.form, self.variance, self.offset = form, variance, offset

    def forward(self, x):
        mean, spread = self.mean(x) + self.offset, self.log_variance(x)
        spread = spread.exp() if self.variance else spread
        return {
            "column": lambda: mean,
            "flat": lambda: mean[:, 0],
            "squeezed": lambda: mean.squeeze(),
            "joined": lambda: torch.cat([mean, spread], 1),
            "pair": lambda: (mean, spread),
            "flat pair": lambda: [mean[:, 0], spread[:, 0]],
            "negative": lambda: (mean, 0 * spread - 1),
            "infinite": lambda: (mean, spread / 0),
            "wide": lambda: torch.cat([mean, mean, spread], 1),
            "failing": lambda: mean @ x[:, [0, 0]].new_zeros(3, 3),
        }[self.form]()


class WithMean(nn.Module):
    # what torch's exporter calls mean, as it does the pooling of a convolutional network
    def forward(self, x):
        return torch.cat([x, x.mean(1, keepdim=True)], 1)


def make_body(width=12, dropout=0.2):
    return nn.Sequential(WithMean(), nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
"""
TOML = """
task = "regression"
[teachers]
path = "teachers"
model = "model.py:Member"
output = "mean-logvar"
[views]
transform = "noise+mixup"
count = 2
[student]
model = "model.py:make_body"
[cache]
batch-size = 4
[train]
epochs = 3
batch-size = 8
lr = 0.01
device = "cpu"
workers = 0
[data]
"""


def examples(rows: int, seed: int) -> tuple[Array, Array]:
    """Features (rows, FEATURES) and targets (rows,), float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES))
    y = LEVEL + x @ SLOPES + NOISE * rng.normal(size=rows)
    return x.astype(np.float32), y.astype(np.float32)


def save_data(folder: Path, split: str, rows: int, **arrays: Array) -> None:
    """Write a split; `arrays` replace x and y or add to them."""
    x, y = examples(rows, sum(map(ord, split)))
    file = folder / "data" / f"{split}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **({"x": x, "y": y} | arrays))


def load_data(folder: Path, split: str) -> tuple[Array, Array]:
    with np.load(folder / "data" / f"{split}.npz") as arrays:
        return arrays["x"], arrays["y"]


def member_weights(seed: int) -> tuple[Float64, Float64]:
    """(FEATURES + 1,) each, the last for the constant: of a member's mean and of its log-variance, in the target's
    unit."""
    rng = np.random.default_rng(100 + seed)
    mean = np.append(SLOPES, LEVEL) + rng.normal(scale=1.5, size=FEATURES + 1)
    log_variance = np.append(np.zeros(FEATURES), 2 * np.log(NOISE)) + rng.normal(scale=0.2, size=FEATURES + 1)
    return mean, log_variance


def moments(x: Array, seed: int) -> tuple[Float64, Float64]:
    """What a member says of rows (B, FEATURES): means and variances (B,) in the target's unit."""
    mean, log_variance = member_weights(seed)
    ones = np.append(x.astype(np.float64), np.ones((len(x), 1)), axis=1)
    return ones @ mean, np.exp(ones @ log_variance)


def ensemble(x: Array, members: int = 3) -> tuple[Float64, Float64]:
    """Means and variances (B, M) of all members."""
    both = [moments(x, seed) for seed in range(members)]
    return np.stack([m for m, _ in both], 1), np.stack([v for _, v in both], 1)


def member_state(seed: int, units: tuple[float, float] = (0.0, 1.0)) -> dict[str, Tensor]:
    """Its weights, for outputs standardized by (mean, standard deviation)."""
    (mean, log_variance), (center, scale) = member_weights(seed), units
    mean, log_variance = mean.copy(), log_variance.copy()
    mean[-1] -= center
    log_variance[-1] -= 2 * np.log(scale)
    return {
        f"{name}.{part}": torch.tensor(values, dtype=torch.float32)
        for name, whole in (("mean", mean / scale), ("log_variance", log_variance))
        for part, values in (("weight", whole[None, :-1]), ("bias", whole[-1:]))
    }


def save_members(folder: Path, members: int = 3, units: tuple[float, float] = (0.0, 1.0)) -> None:
    (folder / "teachers").mkdir(exist_ok=True)
    for seed in range(members):
        save_file(member_state(seed, units), folder / "teachers" / f"member-{seed}.safetensors")


def make_folder(
    folder: Path, members: int = 3, rows: Mapping[str, int] = ROWS, units: tuple[float, float] = (0.0, 1.0)
) -> Path:
    """Data, members and settings, for members that return (B, 2): mean and log-variance.

    Args:
        rows: of the splits to make.
        units: what the members' outputs are standardized by. The settings do not say so.
    """
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    keys = {split: split.replace("/", ".") for split in rows}
    (folder / "edistill.toml").write_text(TOML + "".join(f'{keys[s]} = "data/{s}.npz"\n' for s in rows))
    for split, count in rows.items():
        save_data(folder, split, count)
    save_members(folder, members, units)
    return folder
