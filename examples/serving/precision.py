"""How fast is a student in lower precision? fp32 ÷ fp16 and fp32 ÷ int8, on one thread, with large layers.

    python examples/serving/precision.py

Each body is trained for one epoch on random pictures, with heads for two small members, and exported with
`--fp16 --int8 --force`: its predictions are worthless, but its latency does not depend on them. The files are timed in
turn, over and over, and the medians are divided, so that other work on the machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

from ensemble_distill import cache_logits, export, load_settings, train

BODIES = (("resnet18", 64), ("resnet18", 128), ("mobilenetv3_small_100", 128))  # with the side of a picture
BATCHES = (1, 16)
MEMBER, CLASSES, ROWS = "test_resnet", 10, 32
SETTINGS = """
teachers.path = "teachers"
teachers.model = "{member}"
teachers.preprocessing = {{ size = [{size}, {size}], mean = [0.5], std = [0.5] }}
data.train = "train.npz"
data.validation = "validation.npz"
student.model = "{body}"
train.epochs = 1
train.batch-size = 16
train.workers = 0
train.device = "cpu"
output.name = "student"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each row of the table")
    parser.add_argument("--bodies", nargs="*", default=[f"{body}:{size}" for body, size in BODIES], metavar="NAME:SIZE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| body | pictures | rows at once | fp32 ÷ fp16 | fp32 ÷ int8 |\n|---|---|---:|---:|---:|")
    for wanted in given.bodies:
        body, _, size = wanted.partition(":")
        with tempfile.TemporaryDirectory() as work:
            files = exported(Path(work), body, int(size))
            for rows in BATCHES:
                whole, half, int8 = medians(files, rows, int(size), given.seconds)
                print(f"| {body} | {size} × {size} | {rows} | {whole / half:.2f} | {whole / int8:.2f} |", flush=True)


def exported(work: Path, body: str, size: int) -> Sequence[Path]:
    """The files `model.onnx`, `model-fp16.onnx` and `model-int8.onnx` of a student with this body."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        x = rng.integers(0, 256, (ROWS, size, size, 3), np.uint8)
        np.savez(work / f"{split}.npz", x=x, y=np.arange(ROWS) % CLASSES)
    (work / "teachers").mkdir()
    for seed in range(2):
        torch.manual_seed(seed)
        member = timm.create_model(MEMBER, num_classes=CLASSES)
        torch.save(member.state_dict(), work / "teachers" / f"member-{seed}.pth")
    toml = work / "edistill.toml"
    toml.write_text(SETTINGS.format(member=MEMBER, size=size, body=body), encoding="utf-8")
    settings = load_settings(toml)
    cache_logits(settings)
    train(settings)
    return export(settings, fp16=True, int8=True, force=True, card=False).files


def medians(files: Sequence[Path], rows: int, size: int, seconds: float) -> list[float]:
    """The median seconds of each file on `rows` rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    x = np.random.default_rng(1).standard_normal((rows, 3, size, size)).astype(np.float32)
    taken: list[list[float]] = [[] for _ in files]
    for session in sessions:
        session.run(None, {"pixel_values": x})
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for session, times in zip(sessions, taken, strict=True):
            started = time.perf_counter()
            session.run(None, {"pixel_values": x})
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]


if __name__ == "__main__":
    main()
