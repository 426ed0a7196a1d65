"""Latency of exported students, one row, one thread, in onnxruntime: python examples/diversity/latency.py mnist

Measures every entry that study.py left a run of (seed 0, as trained), as a share of the ensemble's latency as one
graph, and writes SET/latency.csv. MNIST's 50 members are one graph of batched layers, which is faster than running them
in sequence. Leave the machine otherwise idle, since other work changes the ratios.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
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
sys.path.insert(0, str(HERE))
from entries import SEARCH  # noqa: E402

ROUNDS, REPEATS = 5, 200
SHARES = (0.2, 0.3)
COLUMNS = ("architecture", "entry", "latency", "least", "most", "milliseconds", "ensemble_milliseconds")


class Batched(nn.Module):
    """The MLPs of examples/mnist side by side, mapping images (B, 1, 28, 28) to their mean probabilities (B, 10)."""

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
    """The mean of the members' probabilities."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).softmax(-1) for member in self.members]).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=sorted(SEARCH))
    parser.add_argument("--work", type=Path, help="where study.py left its runs")
    given = parser.parse_args()
    folder: Path = given.work or HERE / "output" / given.set
    shape, ensemble, member = _teachers(folder / "teachers", given.set)
    whole = _graph(ensemble, shape)
    lines: dict[str, dict[str, str]] = {}
    for entry in SEARCH[given.set]:
        run = f"{entry.name}-s0"
        if entry.architecture in lines or not (folder / "runs" / run / "student.safetensors").exists():
            continue
        student = _exported(folder, run)
        lines[entry.architecture] = {"entry": entry.name, **_compare(run, student, "the ensemble", whole)}
        if entry.name == "plain" and given.set == "cifar10":
            _compare(run, student, "a member", _graph(member, shape))
    weights = sum(p.numel() for p in ensemble.parameters())
    for share in SHARES:
        product = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), int(share * weights) // math.prod(shape)))
        _compare(f"{share:g} of its weights in one product", _graph(product, shape), "the ensemble", whole)
    with (HERE / given.set / "latency.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"architecture": key, **line} for key, line in lines.items())


def _teachers(folder: Path, name: str) -> tuple[tuple[int, ...], nn.Module, nn.Module]:
    """The shape of one row, the ensemble and its first member."""
    states = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    where = folder if name == "cifar10" else folder.parent
    sys.path.insert(0, str(where))
    from model import make_teacher

    members = [make_teacher().eval() for _ in states]
    for member, state in zip(members, states, strict=True):
        member.load_state_dict(state)
    return (
        ((1, 28, 28), Batched(states), members[0]) if name == "mnist" else ((3, 32, 32), Ensemble(members), members[0])
    )


def _exported(folder: Path, run: str) -> onnxruntime.InferenceSession:
    """A session of the run exported as trained; its calibration is set aside meanwhile."""
    calibration, aside = folder / "runs" / run / "calibration.json", folder / "runs" / run / "calibration.aside"
    if calibration.exists():
        calibration.rename(aside)
    command = [sys.executable, "-m", "ensemble_distill", "export", run, "--onnx"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if aside.exists():
        aside.rename(calibration)
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


def _compare(
    name: str, one: onnxruntime.InferenceSession, other_name: str, other: onnxruntime.InferenceSession
) -> dict[str, str]:
    """Medians of alternating calls, in several rounds; of the ratio the median round, and the lowest and highest."""
    rounds = []
    for _ in range(ROUNDS):
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):
            for session, found in zip((one, other), times, strict=True):
                entry = session.get_inputs()[0]
                x = np.zeros((1, *entry.shape[1:]), np.float32)
                started = time.perf_counter()
                session.run(None, {entry.name: x})
                found.append(time.perf_counter() - started)
        a, b = (1000 * statistics.median(found) for found in times)
        rounds.append((a / b, a, b))
    rounds.sort()
    ratio, a, b = rounds[ROUNDS // 2]
    least, most = rounds[0][0], rounds[-1][0]
    print(f"{name} ÷ {other_name}: {ratio:.3f} ({least:.3f} to {most:.3f}; {a:.3f} ms, {b:.3f} ms)", flush=True)
    return dict(zip(COLUMNS[2:], (f"{number:.3f}" for number in (ratio, least, most, a, b)), strict=True))


if __name__ == "__main__":
    main()
