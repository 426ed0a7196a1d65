"""Small caches of views along the members' gradients, and the step by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import SIDE, contents, examples, linear, make_folder, member_state, settings
from torch import nn

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import StoredInputs, stored_inputs
from ensemble_distill.caching.panel import Asking
from ensemble_distill.caching.passes import cache_outputs
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.workflows.cache_logits import cache_logits

TO = Preprocessing((SIDE, SIDE), (0.5,), (0.5,))
ODS = {"views.transform": "crop-flip+mixup+ods"}
CPU = torch.device("cpu")
forked = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16, 16 and 8 of the 40 training rows, written without waiting for the disk."""
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_cache(tmp_path: Path) -> Path:
    """A folder with its cache, made without interruption."""
    folder = make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})
    cache_logits(settings(folder, ODS))
    return folder


def facts(cache: Path) -> dict[str, bytes]:
    return contents(cache, ["args.toml", ".part"])


def stored(cache: Path, views: int, split: str = "train") -> StoredInputs:
    inputs = stored_inputs(cache, Manifest.load(cache), split, range(views))
    assert inputs is not None
    return inputs


def softmax(z: Array) -> Array:
    p: Array = np.exp(z - z.max())
    return p / p.sum()


def by_hand(x: Array, a: Array, b: Array, w: Array, to: Preprocessing | None, confident: bool, clamp: bool) -> Array:
    """x of a member softmax(A n + b) with n = (x − mean) ÷ std: the gradient is Aᵀ(p ∘ (w − w·p)) ÷ std."""
    mean, std = (0.0, 1.0) if to is None else (to.mean[0], to.std[0])
    p = softmax(a @ ((x.ravel() - mean) / std) + b)
    g = a.T @ (p * (w - w @ p)) / std
    there = x.ravel() + (1 / 255) * (p.max() if confident else 1) * np.sqrt(x.size) * g / np.sqrt(g @ g)
    return (there.clip(0, 1) if clamp else there).reshape(x.shape)


def affine_of(seed: int) -> tuple[Array, Array]:
    state = member_state(seed)
    return state["2.weight"].double().numpy(), state["2.bias"].double().numpy()


def inputs_of(rows: int) -> NDArray[np.float32]:
    """Unlike any pixels, with black and white ones that are not to leave [0, 1]."""
    x = np.random.default_rng(3).uniform(-0.3, 1.3, (rows, 1, SIDE, SIDE)).clip(0, 1)
    return x.astype(np.float32)


def run(cache: Path, plans: dict[str, SplitPlan], teachers: list[Teacher], workers: int = 0) -> int:
    return cache_outputs(
        cache, Classification, plans, teachers, Asking("float32", 5, torch.device("cpu"), workers, Silent())
    )


def plan_of(spec: str, rows: int = 14, kind: Kind = "pixels", seed: int = 0, labels: bool = True) -> SplitPlan:
    x, y = examples(rows, seed)
    data: Array = x[..., None] if kind == "pixels" else (x[:, None] / np.float32(50) - 2).astype(np.float32)
    return SplitPlan(Arrays(data, y if labels else None, kind), open_view(spec), spec, 11, 2)


def member(name: str, side: int = SIDE, module: Callable[[], nn.Module] = lambda: linear(0)) -> Teacher:
    return Teacher(Member(name, name, preprocessing=Preprocessing((side, side), (0.5,), (0.5,))), module)
