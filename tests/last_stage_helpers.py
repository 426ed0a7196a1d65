"""Members whose last stages heads can have, and students made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny
import torch
from torch import nn

from ensemble_distill.runs.run import Run
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

MODELS = """
from torch import nn


def mlp(body=False):
    layers = (nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    return nn.Sequential(nn.Flatten(), *layers)[: 5 if body else None]


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU())
        self.head = nn.Identity() if body else nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


def net(body=False):
    return Net(body)
"""
ROWS = {"train": 240, "validation": 12, "test": 40}
LISTED = {"student.init": ["member-0"]}
START = {"train.epochs": 0, "method.ridge": 1e-9}  # what is solved for alone
MLP = {"student.heads": {"last-stage": "2", "adapt-from": "1"}, **LISTED}
NET = {"student.heads": "last-stage", "student.init": ["member-0", "member-1", "member-2"]}


def make(folder: Path, kind: str, models: str = MODELS) -> Path:
    """Three members of that kind, cached in two views."""
    made = tiny.make_folder(folder, members=0, rows=ROWS)
    for split, rows in ROWS.items():  # labels that members know nothing of, and so no order of theirs
        tiny.save_data(made, split, rows, y=np.random.default_rng(0).integers(0, 3, rows))
    modules = []
    namespace: dict[str, object] = {}
    exec(models, namespace)
    for index in range(3):
        torch.manual_seed(index)
        module: nn.Module = namespace[kind]().train()  # type: ignore[operator]
        for _ in range(30):
            module(torch.rand(50, 1, 6, 6) * 2 - 1)
        for parameter in module.parameters():
            parameter.data *= 2
        modules.append(module)
    tiny.put_members(made, models, modules)
    toml = (made / "edistill.toml").read_text()
    toml = toml.replace("model.py:make_teacher", f"model.py:{kind}").replace("crop-flip+mixup", "crop-flip")
    toml = toml.replace("model.py:make_body", f"model.py:{kind}")
    toml = toml.replace("[student]", "[student]\nkwargs = { body = true }")
    (made / "edistill.toml").write_text(toml.replace("[cache]", '[cache]\ndtype = "float32"'))
    cache_logits(tiny.settings(made))
    return made


def trained(folder: Path, name: str, *chosen: dict[str, object], **more: object) -> Run:
    overrides: dict[str, object] = {"output.name": name}
    for part in chosen:
        overrides |= part
    return Run.open(train(tiny.settings(folder, overrides | more)).folder)


def explained(folder: Path, name: str) -> float:
    found = evaluate(tiny.settings(folder), name).fidelity["diversity_explained"]
    assert isinstance(found, float)
    return found
