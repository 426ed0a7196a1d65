"""What the tests of the kinds of teachers share."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from trusted import EVERYTHING

from ensemble_distill.settings import TeacherSettings
from ensemble_distill.teachers.teacher import Context

SMALL = {"size": [32, 32], "mean": [0.5], "std": [0.25]}


def context(classes: tuple[str, ...] | None = None, **settings: Any) -> Context:
    return Context(TeacherSettings.model_validate(settings, context={"root": Path.cwd()}), classes, trusted=EVERYTHING)


def small_model(seed: int = 0, name: str = "test_resnet", **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 3, **kwargs}).eval()


def assert_equal_outputs(built: nn.Module, original: nn.Module, shape: tuple[int, ...] = (2, 3, 32, 32)) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert not built.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in built.parameters())
    with torch.inference_mode():
        assert torch.equal(built(x), original(x))


def lowered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}


def net(width: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))


def follow(message: str, pattern: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    """Run the code that a message gives, in the folder of the file."""
    found = re.search(pattern, message)
    assert found is not None, message
    monkeypatch.chdir(folder)
    with torch.serialization.safe_globals([argparse.Namespace]):  # takes back what the code adds
        exec(found[1], {"torch": torch, "argparse": argparse, **names})
