"""How long does the exported student take, and how long the exported ensemble? python examples/benchmarks/served.py

Compares the quickstart's student with its ensemble and, given `../shared` as an argument, one ResNet-8 body with ten
heads with the ten members of CIFAR-10. Each is one ONNX file in onnxruntime, run on batches of 1, 16 and 256 rows with
one and two threads; times are medians of alternating calls. They do not depend on how long a student was trained. Leave
the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "cifar10_resnet8")]
from common import edistill  # noqa: E402
from run import prepare  # noqa: E402

BATCHES, THREADS = (1, 16, 256), (1, 2)
EXPORTS = ("export --onnx", "export --ensemble --onnx")
FEW = "--limit 256 --epochs 1 --warmup-epochs 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, nargs="?", help="folder that holds data/ and teachers/")
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing for each number of the table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        digits, cifar10 = Path(name) / "digits", Path(name) / "cifar10"
        edistill(Path(name), f"quickstart {digits}")
        edistill(digits, EXPORTS[1])  # the quickstart has exported its student
        folders = {"8 MLPs, digits": digits}
        if given.shared is not None:
            cifar10.mkdir()
            prepare(given.shared, cifar10)
            settings = cifar10 / "edistill.toml"
            exact = settings.read_text(encoding="utf-8").replace("fast.py:make_fast", "teachers/model.py:make_teacher")
            settings.write_text(exact, encoding="utf-8")  # onnxruntime does not multiply bfloat16
            edistill(cifar10, "cache-logits --limit 256", f"train {FEW}", *(f"{one} --limit 256" for one in EXPORTS))
            folders["10 ResNet-8, CIFAR-10"] = cifar10
        print("| student ÷ ensemble (ms) | threads | " + " | ".join(f"{rows} rows" for rows in BATCHES) + " |")
        print("|---|---:|" + "---:|" * len(BATCHES))
        for what, folder in folders.items():
            for threads in THREADS:
                pair = [session(found(folder, kind), threads) for kind in ("runs", "ensemble")]
                told = [compared(*pair, rows, given.seconds) for rows in BATCHES]
                print(f"| {what} | {threads} | {' | '.join(told)} |", flush=True)


def found(folder: Path, under: str) -> Path:
    """The ONNX file of an export in that folder, or in the one of a limited run."""
    (file,) = folder.glob(f"{under}*/**/model.onnx")
    return file


def session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(file, options)


def compared(student: onnxruntime.InferenceSession, ensemble: onnxruntime.InferenceSession, rows: int, s: float) -> str:
    """The ratio of the medians of alternating calls, and the medians in milliseconds."""
    entry = student.get_inputs()[0]
    fed = {entry.name: np.random.default_rng(0).normal(size=(rows, *entry.shape[1:])).astype(np.float32)}
    taken: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + s
    while len(taken[1]) < 20 or time.perf_counter() < end:
        for one, its in zip((student, ensemble), taken, strict=True):
            started = time.perf_counter()
            one.run(None, fed)
            its.append(time.perf_counter() - started)
    a, b = (1000 * statistics.median(its[3:]) for its in taken)
    return f"{a / b:.2f} ({a:.2f} / {b:.2f})"


if __name__ == "__main__":
    main()
