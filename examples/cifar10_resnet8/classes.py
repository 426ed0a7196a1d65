"""How much of the members' disagreement the confused classes tell: python examples/cifar10_resnet8/classes.py [WORK]

WORK is the folder in which run.py or seeds.py has cached the members; by default `output` beside this file. From the
pooled prediction p of the ensemble it guesses the model uncertainty of the test rows: by the entropy H[p], by Σ_k p_k
(1 − p_k), and by Σ_k s_k p_k (1 − p_k) with numbers s_k fitted on the calibration rows. It prints the scaled l1 error
of each guess, and its worth in members.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.reader import Cache

HERE = Path(__file__).parent
LADDER = HERE.parent / "diversity" / "cifar10" / "ladder.csv"
Array = NDArray[np.float64]


def main() -> None:
    work = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "output"
    (p, wanted), (own, own_wanted) = (read(work, split) for split in ("test", "calibration"))
    by_class = fitted(own * (1 - own), own_wanted)
    print("s_k, relative to their mean:", np.round(by_class / by_class.mean(), 2))
    guesses = {"H[p]": entropy(p), "sum p (1 - p)": (p * (1 - p)).sum(1), "sum s p (1 - p)": (p * (1 - p)) @ by_class}
    for name, guess in guesses.items():
        error = np.abs(guess * wanted.mean() / guess.mean() - wanted).mean() / wanted.mean()
        print(f"{name:16} l1 {error:.4f}, worth {worth(float(error)):.2f} members")


def read(work: Path, split: str) -> tuple[Array, Array]:
    """The ensemble's probabilities (N, K) and its model uncertainty (N,)."""
    records = Cache(work / "cache").open(split)
    logits = records.read(np.arange(len(records))).astype(np.float64)
    each = np.exp(logits - logits.max(-1, keepdims=True))
    each /= each.sum(-1, keepdims=True)
    together = each.mean(1)
    return together, entropy(together) - entropy(each).mean(1)


def entropy(p: Array) -> Array:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def fitted(parts: Array, wanted: Array, steps: int = 20) -> Array:
    """Numbers s ≥ 0 that bring parts (N, K) @ s near wanted (N,): steps down the generalized KL (Richardson 1972).

    Few steps from equal numbers keep them near each other where there are few rows.
    """
    s = np.full(parts.shape[1], wanted.sum() / parts.sum())
    for _ in range(steps):
        s *= (parts.T @ (wanted / np.maximum(parts @ s, 1e-300))) / parts.sum(0)
    return s


def worth(error: float) -> float:
    """The members whose model uncertainty is off by this much."""
    with LADDER.open(newline="") as file:
        steps = [float(row["model_uncertainty_l1"]) for row in csv.DictReader(file) if row["split"] == "test"]
    return float(np.interp(-error, [-step for step in steps], range(1, 1 + len(steps))))


if __name__ == "__main__":
    main()
