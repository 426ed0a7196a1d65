"""Five folds of gradient boosting, of which nothing is kept but what they said: python examples/folds/make.py FOLDER

The table is scikit-learn's digits: 64 counts a row, of pen strokes in squares of a page, and the digit written there.
Of 600 labeled rows each fold says what it thinks of those that it did not see, as it is kept for stacking; of 750 rows
without labels and of 447 test rows all five do.
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
        said["train"][seen] = np.nan  # it knows these rows by heart
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
