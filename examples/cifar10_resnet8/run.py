"""Distill ten ResNet-8 into one: python examples/cifar10_resnet8/run.py ../shared"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import arguments, copy_teachers, edistill, unpack_cifar10, write_digits  # noqa: E402


def main() -> None:
    given = arguments(__doc__ or "", HERE)
    prepare(given.shared, given.work)
    edistill(given.work, "cache-logits", "train --method hydra", "evaluate", "export --onnx --safetensors")
    edistill(given.work, "predict data/cifar10/test/ship -o ships.csv")


def prepare(shared: Path, work: Path) -> None:
    """Make a folder in which the four commands run: data, members, and the rows of each split."""
    unpack_cifar10(shared, work)
    copy_teachers(shared / "teachers" / "cifar10-resnet8", work)
    write_digits(work)
    for name in ("edistill.toml", "body.py", "fast.py", "spread.py"):
        shutil.copy(HERE / name, work / name)
    unseen = np.sort(np.load(work / "teachers" / "unseen_train_rows.npy"))
    np.save(work / "train_rows.npy", np.setdiff1d(np.arange(50_000), unseen))
    np.save(work / "validation_rows.npy", unseen[0::2])
    np.save(work / "calibration_rows.npy", unseen[1::2])


if __name__ == "__main__":
    main()
