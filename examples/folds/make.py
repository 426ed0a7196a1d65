"""Five folds of gradient boosting, of which only the outputs are kept: python examples/folds/make.py FOLDER

The table is scikit-learn's digits: 64 counts per row, of pen strokes in squares of a page, and the digit written there.
For 600 labeled rows, each fold predicts only those that it was not trained on, as for stacking; for 750 rows without
labels and for 447 test rows, all five do.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

HERE = Path(__file__).parent
SPLITS = {"train": 600, "transfer": 750, "test": 447}
FOLDS = 5


def main() -> None:
    folder = Path(sys.argv[1])
    for inside in ("data", "teachers"):
        (folder / inside).mkdir(parents=True)
    for name in ("model.py", "edistill.toml", "alone.toml"):
        shutil.copy(HERE / name, folder)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x, y = digits.data[order].astype(np.float32), digits.target[order]
    parts, start = {}, 0
    for name, rows in SPLITS.items():
        parts[name] = slice(start, start := start + rows)
        labels = {} if name == "transfer" else {"y": y[parts[name]]}
        np.savez_compressed(folder / "data" / f"{name}.npz", x=x[parts[name]], **labels)
    train, labels_of = x[parts["train"]], y[parts["train"]]
    members = []
    folds = np.empty(len(train), np.int64)
    for fold, (seen, held) in enumerate(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(train, labels_of)):
        member = HistGradientBoostingClassifier(max_iter=60, random_state=fold).fit(train[seen], labels_of[seen])
        said = {name: member.predict_proba(x[part]) for name, part in parts.items()}
        said["train"][seen] = np.nan  # it was trained on these rows
        np.savez_compressed(folder / "teachers" / f"fold-{fold}.npz", **said)
        members.append(member)
        folds[held] = fold
    np.save(folder / "folds.npy", folds)
    started, rows = time.perf_counter(), 20
    for row in range(rows):
        for member in members:
            member.predict_proba(x[[row]])
    print(f"The five take {1e3 * (time.perf_counter() - started) / rows:.0f} ms a row, and are forgotten now.")


if __name__ == "__main__":
    main()
