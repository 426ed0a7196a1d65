"""Every method on MNIST, three seeds each, beside the ensemble of 50 MLPs: python examples/mnist/run.py ../shared

Continues where it was interrupted. `evaluate` writes evaluation.csv, which table.py turns into the table of README.md.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import arguments, edistill, gray_cifar10  # noqa: E402
from ensemble import train_members  # noqa: E402
from table import METHODS, SEEDS, print_table  # noqa: E402

# endd's first temperature was chosen among 2.5, 5 and 10 (the default), by the validation NLL of seed 0
OPTIONS = {"endd": "--set method.first-temperature=5"}
OOD_ROWS = 2000


def main() -> None:
    given = arguments(__doc__ or "", HERE)
    work: Path = given.work
    prepare(given.shared, work)
    edistill(work, "cache-logits")
    for name in METHODS:
        edistill(work, *(f"train --method {name} --seed {seed} {OPTIONS.get(name, '')}" for seed in SEEDS))
    runs = " ".join(f"{method}-s{seed}" for method in METHODS for seed in SEEDS)
    edistill(work, f"evaluate {runs} --format csv", into=work / "evaluation.csv")
    print_table(work / "evaluation.csv")
    edistill(work, "evaluate hydra-s0 --shifts --format csv", into=work / "shifts.csv")
    edistill(work, "export hydra-s0 --onnx", "predict cifar10.npz -o predictions.csv")


def prepare(shared: Path, work: Path) -> None:
    """Write settings, networks, data and members to `work`; existing ones are kept."""
    for name in ("edistill.toml", "model.py"):
        shutil.copy(HERE / name, work / name)
    if not (work / "mnist.npz").exists():
        shutil.copy(shared / "data" / "mnist.npz", work / "mnist.npz")
    if not (work / "cifar10.npz").exists():
        np.savez_compressed(work / "cifar10.npz", x=gray_cifar10(shared, OOD_ROWS))
    train_members(work / "mnist.npz", work)


if __name__ == "__main__":
    main()
