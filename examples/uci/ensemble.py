"""Train 50 MLPs on each split of the UCI sets, all 50 at once: python examples/uci/ensemble.py ../shared

Members predict a mean and a log-variance, and are trained by their own NLL (Lakshminarayanan et al. 2017, without
adversarial examples). They differ in initialization, order of rows and dropout. Continues where it was interrupted.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from model import make_teacher
from splits import FOLDERS, SPLITS, Split, read_split, write_split
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from batched import Batched, save_members, train  # noqa: E402
from common import arguments, write_json  # noqa: E402

MEMBERS = 50
LR, WEIGHT_DECAY = 3e-3, 0.1


@dataclass(frozen=True)
class Recipe:
    """What differs between sets, chosen among a few by the mixture's NLL on the validation rows of the first splits."""

    epochs: int
    batch_size: int
    dropout: float


RECIPES = {
    "boston": Recipe(epochs=40, batch_size=32, dropout=0.1),
    "concrete": Recipe(epochs=70, batch_size=32, dropout=0.05),
    "energy": Recipe(epochs=160, batch_size=32, dropout=0.01),
    "kin8nm": Recipe(epochs=30, batch_size=128, dropout=0.01),
    "power-plant": Recipe(epochs=30, batch_size=128, dropout=0.0),
}


def main() -> None:
    given = arguments(__doc__ or "", HERE, sets=FOLDERS)
    for name in given.sets:
        train_set(given.shared / "data" / "uci", name, given.work)


def train_set(uci: Path, name: str, work: Path, splits: Sequence[int] = range(SPLITS)) -> None:
    """Train the splits of a set, each in a folder `work/NAME/split-K`; finished ones are kept."""
    figures = []
    for number in splits:
        folder = work / name / f"split-{number}"
        if not (folder / "ensemble.json").exists():
            _train_split(read_split(uci, name, number), RECIPES[name], number, folder)
        figures.append(json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))["test"])
    for model in ("ensemble", "member"):
        columns = {key: np.array([of[model][key] for of in figures]) for key in figures[0][model]}
        errors = {key: v.std(ddof=1) / math.sqrt(len(v)) if len(v) > 1 else math.nan for key, v in columns.items()}
        told = "  ".join(f"{key} {v.mean():.4g} ± {errors[key]:.2g}" for key, v in columns.items())
        print(f"{name} test, {model}: {told}", flush=True)


def _train_split(split: Split, recipe: Recipe, number: int, folder: Path) -> None:
    """Write `data/`, `teachers/`, `target.json` (the target's standardization) and, last, `ensemble.json`."""
    started = time.monotonic()
    write_split(split, folder / "data")
    write_json(folder / "target.json", {"mean": split.mean, "std": split.std})
    x, y = (torch.from_numpy(array) for array in split.parts["train"])
    make_member = partial(make_teacher, x.shape[1], dropout=recipe.dropout)
    members = Batched(make_member, range(number * MEMBERS, (number + 1) * MEMBERS))
    for _ in train(
        members,
        x,
        (y - split.mean) / split.std,
        _nll,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
    ):
        pass
    save_members(members, [folder / "teachers" / f"member-{index:02d}.safetensors" for index in range(MEMBERS)])
    write_json(folder / "ensemble.json", {part: _figures(members, split, part) for part in ("validation", "test")})
    print(f"{folder.parent.name} {folder.name}: {time.monotonic() - started:.0f} s", flush=True)


def _nll(outputs: Tensor, y: Tensor) -> Tensor:
    """−ln N(y; μ, σ²) from outputs (…, 2), mean and log-variance, and targets (…)."""
    mean, log_variance = outputs.unbind(-1)
    return 0.5 * (math.log(2 * math.pi) + log_variance + (y - mean).square() * (-log_variance).exp())


def _figures(members: Batched, split: Split, part: str) -> dict[str, dict[str, float]]:
    """RMSE, NLL, 95 % coverage and share of model variance of the mixture, and the first three of the mean member.

    RMSE and NLL are in the target's unit.
    """
    x, y = (torch.from_numpy(array) for array in split.parts[part])
    y = (y.double() - split.mean) / split.std
    outputs = members.predict(x).double()
    nll = _nll(outputs, y.expand(MEMBERS, -1)) + math.log(split.std)  # (M, N)
    mean, variance = outputs[..., 0], outputs[..., 1].exp()
    pooled, model = mean.mean(dim=0), mean.var(dim=0, unbiased=False)
    total = variance.mean(dim=0) + model

    def quality(nll: Tensor, mean: Tensor, variance: Tensor) -> dict[str, float]:
        error = (y - mean).abs()
        return {
            "rmse": error.square().mean(dim=-1).sqrt().mean().item() * split.std,
            "nll": nll.mean().item(),
            "coverage95": (error <= 1.96 * variance.sqrt()).double().mean().item(),
        }

    mixture_nll = math.log(MEMBERS) - (-nll).logsumexp(dim=0)
    return {
        "ensemble": quality(mixture_nll, pooled, total) | {"model_share": (model.mean() / total.mean()).item()},
        "member": quality(nll, mean, variance),
    }


if __name__ == "__main__":
    main()
