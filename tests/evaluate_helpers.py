"""Independent figures of classifiers: the members by their own modules, everything else by NumPy and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.special import log_softmax, logsumexp
from scipy.stats import entropy

from ensemble_distill import load_student
from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.runtime.seals import read_sealed_json

Floats = NDArray[np.float64]

# float16 logits differ from float32 ones by some 1e-3
CACHED = {"rtol": 2e-3, "atol": 2e-4}


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy((np.load(path)["x"][:, None].astype(np.float32) / 255 - 0.5) / 0.5)


TIMED = ("latency_ms", "latency", "instead")  # whom to serve instead follows from what students cost


def untimed(document: Any, but: Sequence[str] = ()) -> Any:
    """A document without what is timed, which no two evaluations share, and without these keys."""
    if isinstance(document, dict):
        return {key: untimed(value, but) for key, value in document.items() if key not in (*TIMED, *but)}
    return [untimed(value, but) for value in document] if isinstance(document, list) else document


def kept_document(path: Path) -> dict[str, Any]:
    """What a run keeps of an evaluation, but for what it says of itself: the version, the weights, the digests."""
    record, sealed = read_sealed_json(path)
    assert sealed
    return {key: value for key, value in record.items() if key not in ("edistill", "made_from", "figures_of_rows")}


@torch.no_grad()
def ensemble_of(folder: Path, x: torch.Tensor) -> Floats:
    """Log-probabilities (N, M, K) of the members, by their own modules alone."""
    make = load_factory(f"{folder / 'model.py'}:make_teacher", "teachers.model")
    logits = []
    for path in sorted((folder / "teachers").iterdir()):
        module = make()
        module.load_state_dict(load_file(path))
        logits.append(module.eval()(x).double().numpy())
    found: Floats = log_softmax(np.stack(logits, axis=1), axis=-1)
    return found


@torch.no_grad()
def student_of(run: Path, x: torch.Tensor) -> Floats:
    """Log-probabilities (N, H, K) of a run's heads."""
    found: Floats = log_softmax(load_student(run, trust=True)(x).double().numpy(), axis=-1)
    return found


def figures(
    log_p: Floats, y: NDArray[np.int64], weights: Floats | None = None, logits: bool = False
) -> dict[str, float]:
    """The figures of the pooled prediction, as the design writes them."""
    w = np.ones(log_p.shape[1]) if weights is None else weights
    w = (w / w.sum())[:, None]
    mixture = logsumexp(log_p, axis=1, b=w)
    pooled = log_softmax((w * log_p).sum(1), axis=-1) if logits else mixture
    p = np.exp(pooled)
    total, data = entropy(np.exp(mixture), axis=-1), entropy(np.exp(log_p), axis=-1) @ w[:, 0]
    return {
        "accuracy": float((p.argmax(-1) == y).mean()),
        "nll": float(-pooled[np.arange(len(y)), y].mean()),
        "brier": float(((p - np.eye(p.shape[-1])[y]) ** 2).sum(-1).mean()),
        "total_uncertainty": float(total.mean()),
        "data_uncertainty": float(data.mean()),
        "model_uncertainty": float((total - data).mean()),
    }


def assert_figures(found: dict[str, Any], wanted: dict[str, float], **tolerance: float) -> None:
    for name, value in wanted.items():
        assert_allclose(found[name], value, err_msg=name, **(tolerance or CACHED))
