"""A folder with a run in every state, and another run to put in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import ROWS, make_folder, settings
from trusted import EVERYTHING

from ensemble_distill.runs.run import Run
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

RUN = "runs/hydra-s0"
OTHER = "runs/other"  # the same of another seed, neither calibrated nor exported


def make_runs(folder: Path) -> Path:
    """A tiny folder with a calibrated, evaluated and exported run, and a plain other one."""
    make_folder(folder, rows={**ROWS, "validation": 24})
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "other", "train.seed": 1}))
    train(settings(folder))
    calibrate(settings(folder), "hydra-s0")
    evaluate(settings(folder), "hydra-s0")
    export(settings(folder), "hydra-s0", onnx=True, safetensors=True)
    return folder


def replace_run(run: Path, by: Path) -> None:
    """What `train --overwrite` leaves: all of another training, and nothing of the one before."""
    shutil.rmtree(run)
    shutil.copytree(by, run)


def then(act: Callable[[], object], real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, after something else was done, once."""
    todo = [act]

    def both(*args: Any, **given: Any) -> Any:
        if todo:
            todo.pop()()
        return real(*args, **given)

    return both


def said_by(run: Path) -> list[Any]:
    """All that a run says, exactly."""
    opened = Run.open(run)
    student = opened.student(trust=EVERYTHING)
    x = torch.linspace(-1, 1, 72).view(2, 1, 6, 6)
    with torch.no_grad():
        numbers = student.predictive(student(x)).summary()
    state = {name: tensor.numpy().tobytes() for name, tensor in student.state_dict().items()}
    return [opened.config, opened.calibration, state, numbers.mean.numpy().tobytes(), numbers.model.numpy().tobytes()]
