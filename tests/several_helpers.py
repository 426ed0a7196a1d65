"""Rows of a picture beside numbers, in each form that data has, and networks that take both by their names."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from ensemble_distill.data.source import Array

SIDE, CLASSES = 6, ("cat", "dog", "owl")
MODEL = """
import torch
from torch import nn

class Both(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.seen, self.told = nn.Linear(108, 8), nn.Linear(3, 4)
        self.last = nn.Linear(12, outputs)

    def forward(self, pixel_values, x):
        both = torch.cat([self.seen(pixel_values.flatten(1)), self.told(x)], 1)
        return self.last(torch.tanh(both))

def make_teacher():
    return Both(3)

def make_body():
    return Both(10)
"""
TOML = """
[teachers]
path = "teachers"
model = "model.py:make_teacher"
preprocessing = { size = [6, 6], mean = [0.5], std = [0.25] }

[views]
transform = "crop-flip+mixup+noise"
count = 2

[student]
model = "model.py:make_body"

[train]
epochs = 6
device = "cpu"
workers = 0
"""
OF_TABLES = """
[data.columns]
images = "photo"
inputs = ["age", "sex"]
categories = { sex = ["f", "m"] }
labels = ["kind"]
classes = ["cat", "dog", "owl"]
"""


def rows(count: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """uint8 pixels (N, 6, 6, 3), numbers (N, 3) of an age and of "f" or "m" as one-hot, and classes (N,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    pixels = rng.integers(0, 120, (count, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, y] += 100
    sex = rng.integers(0, 2, count)
    numbers = np.stack([np.round(y + rng.normal(size=count), 3), 1 - sex, sex], axis=1).astype(np.float32)
    return pixels, numbers, y


def write_table(folder: Path, name: str, count: int, seed: int = 0, **others: Sequence[Any]) -> Path:
    """A CSV beside the pictures that it names; `others` are columns in the place of these, or more of them."""
    pixels, numbers, y = rows(count, seed)
    (folder / "photos").mkdir(exist_ok=True)
    files = [f"photos/{name}-{row}.png" for row in range(count)]
    for file, one in zip(files, pixels, strict=True):
        Image.fromarray(one).save(folder / file)
    columns: dict[str, Sequence[Any]] = {
        "kind": [CLASSES[label] for label in y],
        "sex": ["m" if male else "f" for male in numbers[:, 2]],
        "photo": files,
        "age": [f"{age:.3f}" for age in numbers[:, 0]],
    } | others
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return folder / f"{name}.csv"


def write_arrays(path: Path, count: int, seed: int = 0, **others: Any) -> Path:
    """The same rows as an archive."""
    pixels, numbers, y = rows(count, seed)
    np.savez(path, **{"pixel_values": pixels, "x": numbers, "y": y, **others})
    return path


def save_members(folder: Path, count: int = 2) -> None:
    """Checkpoints of `Both`, whose logits depend on picture and numbers."""
    folder.mkdir(parents=True)
    for seed in range(count):
        save_file(state(seed), folder / f"member-{seed}.safetensors")


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shapes = {"seen": (8, 108), "told": (4, 3), "last": (3, 12)}
    weights = {f"{name}.weight": torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}


def logits(weights: dict[str, torch.Tensor], pixels: Array, numbers: Array) -> Array:
    """What `Both` says of rows, in NumPy."""
    seen = ((pixels / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    parts = [x @ weights[f"{name}.weight"].numpy().T for name, x in (("seen", seen), ("told", numbers))]
    said: Array = np.tanh(np.concatenate(parts, axis=1)) @ weights["last.weight"].numpy().T
    return said
