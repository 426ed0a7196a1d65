"""What k members achieve, the ladder that worth is read from: python examples/diversity/ladders.py cifar10 ../shared

Runs the members on the validation and test rows, and writes SET/ladder.csv: for each k, the NLL of k members, and the
l1 error of their model uncertainty scaled to the ensemble's mean, averaged over all choices of k members, or 60 random
ones.
"""

from __future__ import annotations

import csv
import shutil
import sys
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "mnist")]
from common import arguments  # noqa: E402
from folders import PREPARE  # noqa: E402

from ensemble_distill import cache_logits, load_settings  # noqa: E402
from ensemble_distill.cache.reader import Cache  # noqa: E402
from ensemble_distill.settings import Settings  # noqa: E402
from ensemble_distill.workspace.workspace import Workspace  # noqa: E402

MOST = 60
SPLITS = ("validation", "test")
ASIDE = {"data.train": None, "data.calibration": None, "data.ood": {}, "output.cache": "cache-ladder"}


def main() -> None:
    name, *rest = sys.argv[1:]
    sys.argv[1:] = rest
    given = arguments(__doc__ or "", HERE / "output" / name)
    PREPARE[name](given.shared, given.work)
    shutil.copy(HERE / name / "edistill.toml", given.work)
    settings = load_settings(given.work / "edistill.toml", ASIDE)
    cache_logits(settings)
    table = []
    for split in SPLITS:
        records = Cache(given.work / "cache-ladder").open(split)
        p = _softmax(records.read(np.arange(len(records))).astype(np.float64))
        for k, (nll, l1) in enumerate(ladder(p, _labels(settings, split)), start=1):
            table.append({"split": split, "members": k, "nll": f"{nll:.6f}", "model_uncertainty_l1": f"{l1:.6f}"})
    with (HERE / name / "ladder.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def ladder(p: NDArray[np.float64], y: NDArray[np.int64]) -> list[tuple[float, float]]:
    """NLL and scaled l1 error for k = 1 … M, from probabilities (N, M, K)."""
    members, wanted, found = p.shape[1], _model_uncertainty(p), []
    for k in range(1, members + 1):
        parts = [p[:, list(some)] for some in _choices(members, k)]
        nll = np.mean([-np.log(part.mean(1)[np.arange(len(y)), y]).mean() for part in parts])
        found.append((float(nll), 1.0 if k == 1 else float(np.mean([_l1(part, wanted) for part in parts]))))
    return found


def _choices(members: int, k: int) -> list[tuple[int, ...]]:
    if comb(members, k) <= MOST:
        return list(combinations(range(members), k))
    random = np.random.default_rng(k)
    return [tuple(random.choice(members, k, replace=False)) for _ in range(MOST)]


def _l1(p: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    own = _model_uncertainty(p)
    return float(np.abs(own * wanted.sum() / own.sum() - wanted).sum() / wanted.sum())


def _model_uncertainty(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return _entropy(p.mean(1)) - _entropy(p).mean(1)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def _softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _labels(settings: Settings, split: str) -> NDArray[np.int64]:
    labels = Workspace(settings).splits()[split].source.labels
    return np.asarray(labels)


if __name__ == "__main__":
    main()
