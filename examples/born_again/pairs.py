"""Differences of arms, paired by seed, and their intervals."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from claims import Claim
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
SCALE = {"error": 100.0, "train_error": 100.0, "diversity_explained": 100.0}
Lines = Sequence[Mapping[str, str]]


def lines_of(table: Path) -> list[dict[str, str]]:
    """The lines of a CSV file; empty if it does not exist."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def paired(claim: Claim, results: Mapping[str, Lines], measure: str) -> NDArray[np.float64]:
    """First minus second, for each seed that has both."""
    first, second = (
        {line["seed"]: float(line[measure]) for line in results[group] if line["arm"] == arm}
        for group, arm in (claim.first, claim.second)
    )
    seeds = sorted(first.keys() & second.keys(), key=int)
    return np.array([SCALE.get(measure, 1.0) * (first[seed] - second[seed]) for seed in seeds])


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of the mean, by Student's t."""
    half = stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1) * stats.sem(differences)
    return float(differences.mean() - half), float(differences.mean() + half)
