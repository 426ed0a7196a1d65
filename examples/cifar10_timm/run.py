"""Distill four timm runs of three architectures: python examples/cifar10_timm/run.py ../shared"""

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
    work: Path = given.work
    unpack_cifar10(given.shared, work)
    copy_teachers(given.shared / "teachers" / "cifar10-timm", work)
    write_digits(work)
    shutil.copy(HERE / "edistill.toml", work / "edistill.toml")
    rows = np.random.Generator(np.random.PCG64(0)).permutation(50_000)
    np.save(work / "train_rows.npy", np.sort(rows[:10_000]))
    np.save(work / "validation_rows.npy", np.sort(rows[10_000:12_000]))
    edistill(work, "inspect teachers", "cache-logits", "train --method hydra", "evaluate", "export --onnx")
    edistill(work, "predict data/cifar10/test/ship/0000.jpg data/cifar10/test/frog/0000.jpg")


if __name__ == "__main__":
    main()
