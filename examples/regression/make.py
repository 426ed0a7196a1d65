"""A folder with data of two targets and eight members, in seconds: python examples/regression/make.py heat-pump

The heat (kW) and electric power (W) of a heat pump, by a rule of thumb, from the outside temperature, the water
temperature and the speed. Members differ in initialization and in the order of rows.
"""

from __future__ import annotations

import math
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import torch
from model import make_teacher
from numpy.typing import NDArray
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from batched import Batched, save_members, train  # noqa: E402

MEMBERS = 8
SPLITS = {"train": 300, "validation": 200, "test": 400}
TARGETS = ["heat [kW]", "power [W]"]


def main() -> None:
    folder = Path(sys.argv[1])
    rng = np.random.default_rng(0)
    splits = {name: measured(rows, rng) for name, rows in SPLITS.items()}
    (folder / "data").mkdir(parents=True)
    for name in ("edistill.toml", "model.py"):
        shutil.copy(HERE / name, folder / name)
    for name, (x, y) in splits.items():
        np.savez_compressed(folder / "data" / f"{name}.npz", x=x, y=y, classes=np.array(TARGETS))
    unit = tomllib.loads((HERE / "edistill.toml").read_text(encoding="utf-8"))["teachers"]["standardized"]
    x, y = splits["train"]
    y = (y - np.float32(unit["mean"])) / np.float32(unit["std"])
    members = Batched(make_teacher, range(MEMBERS))
    rows = torch.from_numpy(x), torch.from_numpy(y)
    for _ in train(members, *rows, nll, epochs=60, batch_size=30, lr=5e-3, weight_decay=0.01):
        pass
    save_members(members, [folder / "teachers" / f"member-{index:02d}.safetensors" for index in range(MEMBERS)])


def measured(rows: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standardized features (rows, 3), and heat in kW and power in W (rows, 2), with errors of about 3 %."""
    x = rng.uniform(-1, 1, size=(rows, 3))
    outside, water, speed = 5 + 15 * x[:, 0], 45 + 10 * x[:, 1], 0.65 + 0.35 * x[:, 2]
    heat = 12 * speed * (1 + 0.025 * outside - 0.004 * (water - 45))
    power = 1000 * heat * (water + 5 - (outside - 5)) / (0.45 * (water + 278))  # between the two heat exchangers
    y = np.stack([heat, power], axis=1) * (1 + rng.normal(size=(rows, 2)) * [0.02, 0.04])
    return x.astype(np.float32), y.astype(np.float32)


def nll(outputs: Tensor, y: Tensor) -> Tensor:
    """−Σ ln N(y; μ, σ²) over the targets, from outputs (…, 4) and targets (…, 2)."""
    mean, log_variance = outputs.chunk(2, dim=-1)
    square = (y - mean).square() * (-log_variance).exp()
    return (0.5 * (math.log(2 * math.pi) + log_variance + square)).sum(-1)


if __name__ == "__main__":
    main()
