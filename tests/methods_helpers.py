"""What the tests of methods share: batches with mixed and unlabeled rows, and students that are quick to train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.methods import open_method
from ensemble_distill.methods.method import Batch, Labels, Method, Stage, Step
from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.protocol import Average, Predictive
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student

Floats = NDArray[np.float64]

B, M, K, FEATURES = 6, 3, 4, 5
FIRST, HALF, LAST = Step(0, 100), Step(49, 100), Step(99, 100)
WEIGHTS = np.array([0.5, 0.3, 0.2])
LABELED = range(1, B)  # row 0 of a batch has no label
CLASSES = {"classification": K, "regression": 0}
FAMILIES = {"classification": "categorical", "regression": "gaussian"}  # what the members of a task say


def outputs(task: str, rows: int = B, members: int = M, seed: int = 0) -> Floats:
    """Members' outputs (rows, members, W): logits, or means about 3 and log-variances."""
    rng = np.random.default_rng(seed)
    if task == "classification":
        return rng.normal(scale=2, size=(rows, members, K))
    mean = 3 + rng.normal(size=(rows, 1)) + rng.normal(scale=0.7, size=(rows, members))
    return np.stack([mean, rng.normal(-0.5, 0.4, size=(rows, members))], -1)


def predictive(task: str, values: Floats | Tensor, weights: Floats | None = None, **more: Average) -> Predictive:
    """Members' outputs as distributions."""
    pooling = None if weights is None else torch.tensor(weights)
    return open_family(FAMILIES[task]).predictive(
        torch.as_tensor(values), pooling, more.get("average", "probabilities")
    )


def a_batch(
    task: str = "classification",
    rows: int = B,
    seed: int = 0,
    weights: Floats | None = None,
    average: Average = "probabilities",
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Members' outputs and labels; some rows are mixed with another, and row 0 has no label."""
    rng = np.random.default_rng(seed)
    teacher = predictive(task, torch.tensor(outputs(task, rows, seed=seed), dtype=dtype), weights, average=average)
    if task == "classification":
        own, partner = torch.tensor(rng.integers(0, K, (2, rows)))
        own[0] = partner[0] = -1
    else:
        own, partner = torch.tensor(rng.normal(3, 1, (2, rows)), dtype=dtype)
        own[0] = partner[0] = torch.nan
    weight = torch.tensor(np.where(np.arange(rows) % 2, rng.uniform(0.5, 1, rows), 1.0), dtype=dtype)
    return Batch(teacher, Labels(own, partner, weight, torch.arange(rows) > 0))


def raw(method: Method, task: str, heads: int, rows: int = B, seed: int = 1) -> Tensor:
    """A student's raw outputs, float64."""
    width = method.family(open_family(FAMILIES[task])).width(CLASSES[task])
    return torch.tensor(np.random.default_rng(seed).normal(size=(rows, heads, width)))


def said(method: Method, task: str, numbers: Tensor) -> Predictive:
    """What a student's raw outputs mean."""
    return method.family(open_family(FAMILIES[task])).predictive(numbers, None, "probabilities")


def a_student(
    name: str = "hydra", task: str = "classification", dtype: torch.dtype = torch.float64, body: nn.Module | None = None
) -> Student:
    """A method's student before its first stage: it has one head."""
    torch.manual_seed(0)
    family = open_method(name).family(open_family(FAMILIES[task]))
    body = body or nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh())
    return Student(body, Heads(1, 16, (8,), family.width(CLASSES[task])), family).to(dtype)


def stages(name: str, members: int = M, **options: Any) -> list[Stage]:
    method = open_method(name)
    return list(method.stages(method.Options.model_validate(options), members))


def softened(logits: Floats, temperature: float) -> Floats:
    """softmax(logits / temperature)."""
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(-1, keepdims=True))
    found: Floats = exponentials / exponentials.sum(-1, keepdims=True)
    return found


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, of)
    return found
