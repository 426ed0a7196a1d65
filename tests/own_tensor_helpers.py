"""A folder whose modules work in place or do not, and both roads beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import CLASSES, make_folder, settings
from torch import nn

from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

# members and bodies of one architecture; {scaled} makes x smaller, and {rectified} is a ReLU
SOURCE = """
from torch import nn


class Scaled(nn.Module):
    def forward(self, x):
        {scaled}
        return x.mean(1)


def make_teacher():
    return nn.Sequential(*make_body(), nn.Linear(12, 3))


def make_body():
    return nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(36, 12), {rectified}, nn.Linear(12, 12), {rectified})
"""
IN_PLACE = {"scaled": "x.sub_(0.5).div_(0.25)", "rectified": "nn.ReLU(inplace=True)"}
PLAIN = {"scaled": "x = (x - 0.5) / 0.25", "rectified": "nn.ReLU()"}
ROWS = {"train": 24, "validation": 24, "test": 10, "ood/noise": 7}
QUICK = {"train.epochs": 1}


def member() -> nn.Module:
    layers = nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()
    return nn.Sequential(nn.Identity(), nn.Flatten(), *layers, nn.Linear(12, CLASSES))


def folder_of(folder: Path, forms: Mapping[str, str]) -> Path:
    """Three members, whose module works in place or not."""
    make_folder(folder, 0, ROWS)
    (folder / "model.py").write_text(SOURCE.format(**forms))
    (folder / "teachers").mkdir()
    for index in range(3):
        torch.manual_seed(index)
        state = {name: 2 * weight for name, weight in member().state_dict().items()}
        save_file(state, folder / "teachers" / f"member-{index}.safetensors")
    return folder


def both(tmp_path: Path, road: Callable[[Path], Any]) -> tuple[Any, Any]:
    """What a road leads to with modules that work in place, and with others."""
    found = []
    for name, forms in (("in place", IN_PLACE), ("plain", PLAIN)):
        folder = folder_of(tmp_path / name.replace(" ", "-"), forms)
        found.append(road(folder))
    return found[0], found[1]


def trained(folder: Path, **more: Any) -> Path:
    """A cache and a run; its folder."""
    these = settings(folder, {**QUICK, **more})
    cache_logits(these)
    return train(these).folder


def weights(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()
