"""Train 50 MLPs on MNIST, ten at a time, in minutes: python examples/mnist/ensemble.py ../shared

Continues where it was interrupted. Members differ only in initialization and in the order of their rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from model import make_teacher
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from batched import Batched, save_members, train  # noqa: E402
from common import arguments, write_json  # noqa: E402

MEMBERS, GROUP = 50, 10
EPOCHS, BATCH, LR, WEIGHT_DECAY = 8, 256, 5e-3, 0.1  # the best of ten tried, by validation accuracy
MEAN, STD = 0.1307, 0.3081


def main() -> None:
    given = arguments(__doc__ or "", HERE)
    train_members(given.shared / "data" / "mnist.npz", given.work)


def train_members(data: Path, work: Path) -> None:
    """Write `teachers/member-00.safetensors` … and `ensemble.json`, their figures, under `work`."""
    for start in range(0, MEMBERS, GROUP):
        _train_group(data, work, range(start, start + GROUP))
    if not (work / "ensemble.json").exists():
        members = [load_file(work / "teachers" / f"member-{seed:02d}.safetensors") for seed in range(MEMBERS)]
        write_json(work / "ensemble.json", {name: _figures(members, data, name) for name in ("val", "test")})


def _train_group(data: Path, work: Path, seeds: Sequence[int]) -> None:
    files = [work / "teachers" / f"member-{seed:02d}.safetensors" for seed in seeds]
    if all(file.exists() for file in files):
        return
    started = time.monotonic()
    x, y = _rows(data, "train")
    members = Batched(make_teacher, seeds)
    for epoch in train(
        members, x, y, _cross_entropy, epochs=EPOCHS, batch_size=BATCH, lr=LR, weight_decay=WEIGHT_DECAY
    ):
        print(f"{files[0].stem} … {files[-1].stem}: epoch {epoch}, {time.monotonic() - started:.0f} s", flush=True)
    save_members(members, files)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)


def _rows(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Normalized pixels (N, 784), as `preprocessing` in edistill.toml makes them, and classes (N,)."""
    with np.load(data) as arrays:
        x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
    pixels = torch.from_numpy(x).flatten(1).float()
    return pixels.div_(255).sub_(MEAN).div_(STD), torch.from_numpy(y.astype(np.int64))


@torch.no_grad()
def _figures(members: Sequence[dict[str, Tensor]], data: Path, split: str) -> dict[str, dict[str, float]]:
    """Accuracy, NLL, Brier score and model uncertainty in nats of the ensemble, and the first three of the mean
    member."""
    x, y = _rows(data, split)
    module = make_teacher().eval()
    logits = []
    for state in members:
        module.load_state_dict(state)
        logits.append(module(x))
    log_p = torch.stack(logits).double().log_softmax(-1)  # (M, N, K)
    pooled = log_p.exp().mean(dim=0, keepdim=True).log()
    entropy = [-(p.exp() * p).sum(dim=-1).mean().item() for p in (pooled, log_p)]

    def quality(log_p: Tensor) -> dict[str, float]:
        target = nn.functional.one_hot(y, 10)
        return {
            "accuracy": (log_p.argmax(dim=-1) == y).double().mean().item(),
            "nll": -log_p.gather(-1, y.expand(len(log_p), -1).unsqueeze(-1)).mean().item(),
            "brier": (log_p.exp() - target).square().sum(dim=-1).mean().item(),
        }

    return {
        "ensemble": quality(pooled) | {"model_uncertainty": entropy[0] - entropy[1]},
        "member": quality(log_p),
    }


if __name__ == "__main__":
    main()
