"""A folder with data of five labels and eight members, in seconds: python examples/multi_label/make.py topics

The data is scikit-learn's `make_multilabel_classification`: documents as counts of 20 words, each about any number of
five topics, or about none. Members differ in initialization and in the order of rows.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from model import make_teacher
from sklearn.datasets import make_multilabel_classification
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from batched import Batched, save_members, train  # noqa: E402

MEMBERS = 8
SPLITS = {"train": 400, "validation": 300, "test": 600}
TOPICS = ["art", "law", "music", "sport", "trade"]


def main() -> None:
    folder = Path(sys.argv[1])
    x, y = make_multilabel_classification(sum(SPLITS.values()), n_classes=len(TOPICS), random_state=0)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    (folder / "data").mkdir(parents=True)
    for name in ("edistill.toml", "model.py"):
        shutil.copy(HERE / name, folder / name)
    start = 0
    for name, rows in SPLITS.items():
        part = slice(start, start := start + rows)
        np.savez_compressed(folder / "data" / f"{name}.npz", x=x[part], y=y[part], classes=np.array(TOPICS))
    members = Batched(make_teacher, range(MEMBERS))
    seen = slice(SPLITS["train"])
    rows_seen = torch.from_numpy(x[seen]), torch.from_numpy(y[seen]).float()
    for _ in train(members, *rows_seen, loss, epochs=30, batch_size=50, lr=5e-3, weight_decay=0.01):
        pass
    save_members(members, [folder / "teachers" / f"member-{index:02d}.safetensors" for index in range(MEMBERS)])


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """−Σ ln p(label) over the labels, from logits (…, 5) and labels (…, 5)."""
    return binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(-1)


if __name__ == "__main__":
    main()
