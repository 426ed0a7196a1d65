"""Latency of exported students, one row, one thread, in onnxruntime: python examples/diversity/latency.py

On the folders that study.py left, and of the runs below those that are there. MNIST's students against its 50 members
as one graph of batched layers, which is faster than one after the other; CIFAR-10's one body under ten linear heads
against a single member, and compressed members against the ten as one graph.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ensemble_distill.students.heads import BatchedLinear

HERE = Path(__file__).parent
REPEATS = 300


class Batched(nn.Module):
    """The MLPs of examples/mnist side by side: images (B, 1, 28, 28) to their mean probabilities (B, 10)."""

    def __init__(self, members: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for name in ("1", "3", "5"):
            weight = torch.stack([member[f"{name}.weight"].T for member in members])
            layer = BatchedLinear(*weight.shape)
            layer.weight.data, layer.bias.data = weight, torch.stack([member[f"{name}.bias"] for member in members])
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        y: Tensor = self.layers[-1](x)
        return y.softmax(-1).mean(1)


class Ensemble(nn.Module):
    """The mean of members' probabilities."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).softmax(-1) for member in self.members]).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "output")
    work = parser.parse_args().work
    if (work / "mnist").is_dir():
        _mnist(work / "mnist")
    if (work / "cifar10").is_dir():
        _cifar10(work / "cifar10")


def _mnist(folder: Path) -> None:
    members = [load_file(file) for file in sorted((folder / "teachers").glob("*.safetensors"))]
    ensemble = _graph(Batched(members), (1, 28, 28))
    for run in _there(folder, "rank-80-s0", "rank-96-stages-49-s0", "rank-80-stages-49-s0"):
        _compare(f"MNIST, {run} ÷ the ensemble as one graph", _exported(folder, run), ensemble)
        weights = sum(t.numel() for t in load_file(folder / "runs" / run / "student.safetensors").values())
        product = nn.Sequential(nn.Flatten(), nn.Linear(784, weights // 784))
        _compare(f"MNIST, as many weights as {run} in one product ÷ that", _graph(product, (1, 28, 28)), ensemble)


def _cifar10(folder: Path) -> None:
    sys.path.insert(0, str(folder / "teachers"))
    from model import make_teacher

    members = []
    for file in sorted((folder / "teachers").glob("*.safetensors")):
        members.append(make_teacher().eval())
        members[-1].load_state_dict(load_file(file))
    for run in _there(folder, "plain-s0"):
        _compare(f"CIFAR-10, {run} ÷ one member", _exported(folder, run), _graph(members[0], (3, 32, 32)))
    ensemble = _graph(Ensemble(members), (3, 32, 32))
    for run in _there(folder, "compressed-34-s0", "compressed-345-photos-s0", "compressed-42-seven-s0"):
        _compare(f"CIFAR-10, {run} ÷ the ensemble as one graph", _exported(folder, run), ensemble)


def _there(folder: Path, *runs: str) -> list[str]:
    return [run for run in runs if (folder / "runs" / run / "student.safetensors").exists()]


def _exported(folder: Path, run: str) -> onnxruntime.InferenceSession:
    subprocess.run([sys.executable, "-m", "ensemble_distill", "export", run, "--onnx"], cwd=folder, check=True)
    return _session((folder / "runs" / run / "export" / "model.onnx").read_bytes())


def _graph(module: nn.Module, shape: tuple[int, ...]) -> onnxruntime.InferenceSession:
    example = (torch.zeros(2, *shape),)
    dynamic = ({0: torch.export.Dim("batch_size")},)
    program = torch.onnx.export(
        module.eval(), example, dynamo=True, external_data=False, dynamic_shapes=dynamic, verbose=False
    )
    file = io.BytesIO()
    assert program is not None
    program.save(file)  # type: ignore[arg-type]
    return _session(file.getvalue())


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options)


def _compare(what: str, one: onnxruntime.InferenceSession, other: onnxruntime.InferenceSession) -> None:
    """Medians of alternating calls."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for session, found in zip((one, other), times, strict=True):
            entry = session.get_inputs()[0]
            x = np.zeros((1, *entry.shape[1:]), np.float32)
            started = time.perf_counter()
            session.run(None, {entry.name: x})
            found.append(time.perf_counter() - started)
    a, b = (1000 * statistics.median(found) for found in times)
    print(f"{what}: {a / b:.2f} ({a:.3f} ms, {b:.3f} ms)")


if __name__ == "__main__":
    main()
