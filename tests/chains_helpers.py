"""Chains of generations of the tiny folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tiny import make_folder, settings

from ensemble_distill.chains.generations import ChainReport, train_chain
from ensemble_distill.workflows.cache_logits import cache_logits

WEIGHTS = "student.safetensors"
ROWS = {"train": 40, "validation": 24, "test": 10, "transfer": 9}


def asked(name: str, generations: int | None, **more: Any) -> dict[str, Any]:
    """Overrides; others are written train__lr=0.1 for train.lr."""
    others = {key.replace("__", ".").replace("_", "-"): value for key, value in more.items()}
    return {"train.method": "ban", "train.generations": generations, "output.name": name, **others}


def chained(folder: Path, name: str, generations: int, overwrite: bool = False, **more: Any) -> ChainReport:
    return train_chain(settings(folder, asked(name, generations, **more)), overwrite=overwrite)


def make_chain(folder: Path) -> Path:
    """A folder with a cache and runs/whole, a chain of 3."""
    make_folder(folder, rows=ROWS)
    np.savez(folder / "data/transfer.npz", x=np.load(folder / "data/transfer.npz")["x"])  # without labels
    cache_logits(settings(folder))
    chained(folder, "whole", 3)
    return folder
