"""A table of people in whatever file, its declared columns, and the numbers that they become."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import OneHotEncoder

from ensemble_distill.data.columns import Columns

DECLARED = Columns(
    inputs=("age", "sex", "deck", "fare"),
    categories={"sex": ("f", "m"), "deck": ("A", "B", "C, D")},
    labels=("survived",),
    classes=("no", "yes"),
)
ROWS = 40
RNG = np.random.default_rng(0)
DATA: dict[str, list[Any]] = {
    "id": [f"p{row}" for row in range(ROWS)],
    "age": RNG.normal(40, 10, ROWS).round(2).tolist(),
    "sex": RNG.choice(["f", "m"], ROWS).tolist(),
    "fare": RNG.integers(0, 100, ROWS).tolist(),
    "deck": RNG.choice(["A", "B", "C, D"], ROWS).tolist(),
    "survived": ["yes" if row % 3 else "no" for row in range(ROWS)],
}


def written(path: Path, data: dict[str, list[Any]] = DATA, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(data)
        writer.writerows(zip(*data.values(), strict=True))
    return path


def expected() -> np.ndarray[Any, Any]:
    """By scikit-learn's encoder."""
    numbers = {name: np.array(DATA[name], np.float64)[:, None] for name in ("age", "fare")}
    hot = {
        name: OneHotEncoder(categories=[list(values)], sparse_output=False).fit_transform(np.array(DATA[name])[:, None])
        for name, values in DECLARED.categories.items()
    }
    parts = [numbers["age"], hot["sex"], hot["deck"], numbers["fare"]]
    found: np.ndarray[Any, Any] = np.concatenate(parts, axis=1).astype(np.float32)
    return found
