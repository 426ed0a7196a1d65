"""How long does a command take to start, and to find nothing to do? python examples/benchmarks/commands.py

Runs in the quickstart's folder, where all commands have run before. Times are seconds of whole processes: cold (the
first run after the system's file cache was emptied, where that is allowed: Linux, as root) and warm (median of five).
For comparison: a Python that does nothing, one that imports torch, and one that imports onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DROP = Path("/proc/sys/vm/drop_caches")
FLOORS = {"pass": "python, nothing else", "import numpy": "", "import onnxruntime": "", "import torch": ""}
COMMANDS = (
    "--help",
    "train --help",
    "methods",
    "settings",
    "inspect runs/hydra-s0",
    "verify cache",
    "doctor",
    "cache-logits",
    "train",
    "evaluate",
    "compare hydra-s0 kd-s0",
    "calibrate",
    "export --onnx",
    "predict data/test.npz",
)
FIRST = ("cache-logits", "train --method kd", "train", "evaluate", "export --onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats: int = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "digits"
        ours = [sys.executable, "-m", "ensemble_distill"]
        for command in (f"quickstart {folder}", *FIRST):
            subprocess.run([*ours, *command.split()], cwd=folder if folder.exists() else name, check=True, **QUIET)
        print("| command | cold (s) | warm (s) |\n|---|---:|---:|")
        for code, told in FLOORS.items():
            tell(f"*{told or code}*", [sys.executable, "-c", code], folder, repeats)
        for command in COMMANDS:
            tell(f"`{command}`", [*ours, *command.split()], folder, repeats)


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def tell(name: str, command: list[str], folder: Path, repeats: int) -> None:
    cold = f"{seconds(command, folder):.2f}" if emptied() else "–"
    seconds(command, folder)  # fills the file cache
    warm = statistics.median(seconds(command, folder) for _ in range(repeats))
    print(f"| {name} | {cold} | {warm:.2f} |", flush=True)


def emptied() -> bool:
    """Whether the system has dropped its file cache."""
    os.sync()
    try:
        DROP.write_text("3")
    except OSError:
        return False
    return True


def seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, **QUIET)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
