"""The UCI sets and their given splits, as the `.npz` files that edistill reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDERS = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "kin8nm": "kin8nm",
    "power-plant": "power-plant",
}
SPLITS = 10
HELD_OUT = 0.1  # share of a split's training rows used for validation


@dataclass(frozen=True)
class Split:
    """One split of a set.

    Attributes:
        parts: train, validation and test: x float32 (N, F), standardized by the training rows, and y float32 (N,)
            in the target's unit.
        mean, std: of the target over the training rows.
    """

    parts: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    mean: float
    std: float


def read_split(uci: Path, name: str, split: int) -> Split:
    """A split of a set, 0 to 9, with its given test rows; a tenth of the given training rows is for validation."""

    def indices(file: str) -> NDArray[np.int64]:
        return np.loadtxt(folder / f"index_{file}.txt", dtype=np.int64, ndmin=1)

    folder = uci / FOLDERS[name]
    table = np.loadtxt(folder / "data.txt")
    x, y = table[:, indices("features")], table[:, indices("target")[0]]
    given = np.random.Generator(np.random.PCG64(split)).permutation(indices(f"train_{split}"))
    held_out = round(HELD_OUT * len(given))
    rows = {"train": given[held_out:], "validation": given[:held_out], "test": indices(f"test_{split}")}
    center, scale = x[rows["train"]].mean(axis=0), x[rows["train"]].std(axis=0)
    x = ((x - center) / np.where(scale > 0, scale, 1.0)).astype(np.float32)
    own = y[rows["train"]]
    parts = {part: (x[at], y[at].astype(np.float32)) for part, at in rows.items()}
    return Split(parts, mean=float(own.mean()), std=float(own.std()))


def write_split(split: Split, folder: Path) -> None:
    """Write `train.npz`, `validation.npz` and `test.npz` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (x, y) in split.parts.items():
        np.savez_compressed(folder / f"{part}.npz", x=x, y=y)
