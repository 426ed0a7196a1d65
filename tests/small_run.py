"""A run whose body is a file of the user's, two folders above it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from configs import configured
from tiny import unseal
from torch import nn

from ensemble_distill.runs.run import Run

SHAPE = (6,)
MODEL_FILE = """
from torch import nn

def make_body(width=4):
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU())
"""


def make_body(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU())


def saved_run(folder: Path) -> Run:
    """`runs/hydra-s0` below a folder that has its `model.py`, with running statistics away from their start."""
    (folder / "model.py").write_text(MODEL_FILE)
    torch.manual_seed(0)
    config = configured()
    student = config.architecture.build(make_body)
    student.train()(torch.randn(16, *SHAPE) * 3 + 1)
    return Run.save(folder / "runs" / "hydra-s0", config, student.eval())


def edited(run: Run, edit: Callable[[dict[str, Any]], object]) -> Run:
    """The run with its config.json changed."""
    config = unseal(run.folder)
    record = json.loads(config.read_text(encoding="utf-8"))
    edit(record)
    config.write_text(json.dumps(record))
    return run
