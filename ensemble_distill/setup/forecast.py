"""How long each command will take and what it will fill, from a few rows through members and body."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from ensemble_distill.cache.formats import Format
from ensemble_distill.caching.panel import wanted
from ensemble_distill.caching.seen import seen
from ensemble_distill.runtime.spread import spread
from ensemble_distill.setup.checks import Examined
from ensemble_distill.teachers.answering import Inputs
from ensemble_distill.training.budget import default_epochs
from ensemble_distill.workspace.workspace import Workspace

ROWS = 32  # that are timed
STATES = 4  # times the student's weights: the student, its average and two moments of the optimizer
NUMBER = 4  # bytes of a float32

Told = TypeVar("Told")


@dataclass(frozen=True)
class Step:
    """A command, the seconds it takes and the bytes it leaves; both by this machine as busy as it is now."""

    command: str
    seconds: float
    bytes: int


def forecast(workspace: Workspace, found: Examined) -> list[Step]:
    """Of the whole road, as far as members and student could be built; nothing where they could not."""
    plan = found.plans.get("train")
    if plan is None or not found.members:
        return []
    rows = spread(len(plan.source), ROWS)
    shown, rendering = _timed(lambda: seen(plan.rows(), rows, [0], wanted(found.members)))
    asking, shape = 0.0, (0,)
    for asked in found.members:
        asked.to(workspace.device)
        x = shown.get((0, asked.wants)) if asked.wants is not None else None
        said, seconds = _timed(partial(asked.answers, "train", rows, None if x is None else x.to(workspace.device)))
        asking, shape = asking + seconds, said.shape[1:]
    each = (rendering + asking) / len(rows)
    counted = sum(len(one.source) * one.count for one in found.plans.values())
    record = Format(workspace.task.format, shape, _dtype(workspace)).record.itemsize
    steps = [Step("cache-logits", each * counted, record * counted * len(found.members))]
    if found.body is None:
        return steps
    taken = Inputs(found.taken)
    update, asked_once = _of_body(found.body, seen(plan.rows(), rows, [0], [taken])[0, taken])
    trained = sum(len(found.plans[name].source) for name in ("train", "transfer") if name in found.plans)
    train = workspace.settings.train
    epochs = default_epochs(trained, train.batch_size, train.effort) if train.epochs is None else train.epochs
    validated = len(found.plans["validation"].source) if "validation" in found.plans else 0
    size = sum(parameter.numel() for parameter in found.body.parameters()) * NUMBER
    student = rendering / len(rows) + asked_once
    training = epochs * (
        trained * (rendering / len(rows) + update) + min(1, 100 / max(epochs, 1)) * validated * student
    )
    steps.append(Step(f"train ({epochs:,} epochs)", training, size * (1 + STATES)))
    others = sum(len(one.source) for name, one in found.plans.items() if name not in ("train", "transfer"))
    steps.append(Step("evaluate", others * student, others * NUMBER * 12))
    steps.append(Step("export --onnx", 10.0, size))
    return steps


def _dtype(workspace: Workspace) -> str:
    return workspace.settings.cache.dtype or workspace.task.dtypes[0]


def _timed(act: Callable[[], Told]) -> tuple[Told, float]:
    """What it gives and the seconds of the second time: the first sets things up."""
    act()
    started = time.monotonic()
    return act(), time.monotonic() - started


def _of_body(body: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Seconds a row of an update, and of a pass without one. The body is a new one, which nobody else has."""

    def update() -> None:
        body.train()
        body(x).square().mean().backward()

    def asked() -> None:
        body.eval()
        with torch.no_grad():
            body(x)

    with torch.random.fork_rng(devices=[]):
        return _timed(update)[1] / len(x), _timed(asked)[1] / len(x)
