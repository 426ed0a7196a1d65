"""Does memory grow with the data? Tiny members on more and more rows, members, views and classes.

    python examples/benchmarks/memory.py --work /tmp/memory --csv examples/benchmarks/memory.csv

For each case, `cache-logits` and one epoch of `train` run in processes of their own, twice: on 256 rows, which shows
what Python, torch, the members and the student take, and on all rows. Reported are the peak of the process's anonymous
memory (pages of mapped files do not count, since they can be dropped at any time), what all rows add to it, seconds,
and seconds of processor time. Linux only, since it reads /proc. Each case's files are removed at its end; the largest
case fills 4 GB.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

FEATURES = 16
FEW = 256  # rows of the run to compare with
MODEL = """
from torch import nn

def make_teacher(classes):
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, classes))

def make_body():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU())
"""
TOML = """
teachers.path = "teachers"
teachers.model = "model.py:make_teacher"
teachers.model-kwargs = {{ classes = {classes} }}
data.train = "train.npz"
views.transform = "{transform}"
views.count = {views}
cache.records = "{records}"
student.model = "model.py:make_body"
train.epochs = 1
train.device = "cpu"
train.workers = 0
"""
COLUMNS = ("case", "rows", "members", "classes", "views", "command", "peak_mb", "added_mb", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Case:
    rows: int
    members: int = 8
    classes: int = 100
    views: int = 1
    records: str = "dense"

    @property
    def transform(self) -> str:
        return "noise" if self.views > 1 else "none"


CASES = {
    "rows-4": Case(10**4),
    "rows-5": Case(10**5),
    "rows-6": Case(10**6),
    "members-200": Case(10**4, members=200),
    "views-64": Case(4000, views=64),
    "classes-21843": Case(4000, classes=21_843, records="sampled"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where data, caches and runs go, and are removed")
    parser.add_argument("--csv", type=Path, help="where the results are appended")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    for name in given.cases:
        case = CASES[name]
        base = measured(given.work / "few", case, FEW)
        for command, (peak, seconds, cpu) in measured(given.work / name, case, case.rows).items():
            added = peak - base[command][0]
            row = (name, case.rows, case.members, case.classes, case.views, command)
            tell(given.csv, (*row, round(peak), round(added), round(seconds, 1), round(cpu, 1)))


def tell(path: Path | None, row: tuple[object, ...]) -> None:
    print(*(f"{name}={value}" for name, value in zip(COLUMNS, row, strict=True)), flush=True)
    if path is not None:
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            csv.writer(file).writerows([COLUMNS, row] if fresh else [row])


def measured(folder: Path, case: Case, rows: int) -> dict[str, tuple[float, float, float]]:
    """The peak in MB, the seconds and the processor seconds of each command on `rows` rows."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        make(folder, case, rows)
        return {command: watched(folder, command) for command in ("cache-logits", "train")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make(folder: Path, case: Case, rows: int) -> None:
    (folder / "teachers").mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "edistill.toml").write_text(TOML.format(transform=case.transform, **vars(case)))
    for seed in range(case.members):
        torch.manual_seed(seed)
        member = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, case.classes))
        save_file(member.state_dict(), folder / "teachers" / f"member-{seed:03d}.safetensors")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, FEATURES), np.float32), rng.integers(0, case.classes, rows)
    np.savez(folder / "train.npz", x=x, y=y)


def watched(folder: Path, command: str) -> tuple[float, float, float]:
    started, peak = time.monotonic(), 0
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "ensemble_distill", command], cwd=folder, stdout=said, stderr=said
        )
        ended = 0
        while not ended:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    if status:
        raise SystemExit((folder / "said.txt").read_text())
    return peak / 1e6, time.monotonic() - started, usage.ru_utime + usage.ru_stime


def anonymous(pid: int) -> int:
    """Bytes of a process's memory that are not backed by a file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
