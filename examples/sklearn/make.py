"""Six scikit-learn classifiers of one table, as ONNX and as outputs alone: python examples/sklearn/make.py FOLDER

The table is scikit-learn's digits: 64 counts per row, of pen strokes in squares of a page, and the digit written there.
Two forests, two gradient boostings and two MLPs are trained on bootstrap samples of the same 900 rows.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
SPLITS = {"train": 900, "validation": 300, "test": 597}


def estimators() -> Iterator[tuple[str, Any]]:
    for seed in range(2):
        yield f"boosting-{seed}", GradientBoostingClassifier(n_estimators=30, subsample=0.5, random_state=seed)
        yield f"forest-{seed}", RandomForestClassifier(100, random_state=seed)
        yield f"mlp-{seed}", make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=60, random_state=seed))


def main() -> None:
    folder = Path(sys.argv[1])
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x, y = digits.data[order].astype(np.float32), digits.target[order]
    parts, start = {}, 0
    for name, rows in SPLITS.items():
        parts[name] = slice(start, start := start + rows)
    for kind in ("onnx", "outputs"):
        for inside in ("data", "teachers"):
            (folder / kind / inside).mkdir(parents=True)
        shutil.copy(HERE / "model.py", folder / kind)
        shutil.copy(HERE / f"{kind}.toml", folder / kind / "edistill.toml")
        for name, part in parts.items():
            np.savez_compressed(folder / kind / "data" / f"{name}.npz", x=x[part], y=y[part])
    for name, estimator in estimators():
        rows = np.random.default_rng(sum(map(ord, name))).integers(0, SPLITS["train"], SPLITS["train"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 60 rounds are few for an MLP
            estimator.fit(x[rows], y[rows])
        types = [("X", FloatTensorType([None, x.shape[1]]))]
        graph = to_onnx(estimator, initial_types=types, options={id(estimator): {"zipmap": False}})
        (folder / "onnx/teachers" / f"{name}.onnx").write_bytes(graph.SerializeToString())
        said = {split: estimator.predict_proba(x[part]) for split, part in parts.items()}
        np.savez_compressed(folder / "outputs/teachers" / f"{name}.npz", **said)


if __name__ == "__main__":
    main()
