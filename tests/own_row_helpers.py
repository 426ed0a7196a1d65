"""Members and bodies that say of a row what its neighbors make of it, each in its own way."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import make_folder
from torch import nn

# {mixing} stands between the layers of members and bodies
SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Mixing(nn.Module):
    def __init__(self, width):
        super().__init__()
        {init}

    def forward(self, x):
        return {forward}


def make_teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), Mixing(16), nn.Linear(16, 3))


def make_body():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), Mixing(16))
"""
RANDOM, BATCH = "draws random numbers", "depends on the rest of the batch"
NORM = "self.norm = nn.BatchNorm1d(width, affine=False, {}track_running_stats={})"
MIXINGS = {
    "dropout": ("pass", "F.dropout(x)", RANDOM),
    "faint dropout": ("pass", "F.dropout(x, 0.02)", RANDOM),
    "state": ("self.asked = 0.0", "x * (1 + self.count())", RANDOM),
    "batch statistics": (NORM.format("", False), "self.norm(x)", BATCH),
    "the batch's mean": ("pass", "x - x.mean(0)", BATCH),
    "the row before": ("pass", "x + x.roll(1, 0)", BATCH),
    "the rows before": ("pass", "x.cumsum(0)", BATCH),  # of which the first has none
}
DATA = {"train": 24, "validation": 24, "test": 30}


def source(name: str) -> str:
    init, forward, _ = MIXINGS[name]
    counting = "\n    def count(self):\n        self.asked += 0.1\n        return self.asked\n"
    text = SOURCE.format(init=init, forward=forward)
    return text.replace("\n\ndef make_teacher", f"{counting}\n\ndef make_teacher") if name == "state" else text


def good(init: str = "pass", forward: str = "x") -> str:
    return SOURCE.format(init=init, forward=forward)


def module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Identity(), nn.Linear(16, 3))


def folder_of(folder: Path, text: str, members: int = 2) -> Path:
    make_folder(folder, 0, DATA)
    (folder / "model.py").write_text(text)
    (folder / "teachers").mkdir()
    for index in range(members):
        state = {name: 3 * weight for name, weight in module(index).state_dict().items()}
        save_file(state, folder / "teachers" / f"member-{index}.safetensors")
    return folder


def now(folder: Path, text: str) -> dict[str, str]:
    """Settings by which members and bodies are made by another text. A file is imported once: it is another."""
    file = folder / f"version-{len(list(folder.glob('version-*')))}" / "model.py"
    file.parent.mkdir()
    file.write_text(text)
    return {"teachers.model": f"{file}:make_teacher", "student.model": f"{file}:make_body"}
