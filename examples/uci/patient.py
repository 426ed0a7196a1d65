"""Patient students from scratch on the sets where those of run.py fail: python examples/uci/patient.py ../shared

The student is the same: one body of 50 units with linear heads, and no start from members. But it takes four times the
steps, on the rows as they are. Each finished split is a line of patient.csv beside this file, and is then skipped, so
that the runs can continue anywhere. `--splits 0 1 2` runs some of the splits.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from common import add_line, arguments, lines_of, worth_of  # noqa: E402
from ensemble import train_set  # noqa: E402
from splits import SPLITS  # noqa: E402

from ensemble_distill.settings import Settings, load_settings  # noqa: E402
from ensemble_distill.workflows.cache_logits import cache_logits  # noqa: E402
from ensemble_distill.workflows.evaluate import evaluate  # noqa: E402
from ensemble_distill.workflows.train import train  # noqa: E402

TABLE = HERE / "patient.csv"
FIGURES = ("rmse", "nll", "coverage95")
MEMBERS = ("worth_prediction", "worth_uncertainty", "worth_uncertainty_control", "cost_latency", "cost_parameters")


@dataclass(frozen=True)
class Recipe:
    """What differs between sets, chosen on the validation rows of the first split."""

    batch_size: int


STEPS, LR, WIDTH = 8000, 1e-2, 50
RECIPES = {
    "energy": Recipe(batch_size=64),
    "kin8nm": Recipe(batch_size=256),
    "power-plant": Recipe(batch_size=256),
}


def main() -> None:
    given = arguments(__doc__ or "", HERE, sets=RECIPES, splits=[str(number) for number in range(SPLITS)])
    for number in map(int, given.splits):
        for name in given.sets:
            if (name, str(number)) not in {(line["set"], line["split"]) for line in lines_of(TABLE)}:
                started = time.monotonic()
                train_set(given.shared / "data" / "uci", name, given.work, [number])
                figures = distilled(given.work / name / f"split-{number}", RECIPES[name], number)
                add_line(TABLE, {"set": name, "split": number, **figures})
                print(f"{name}, split {number}: {time.monotonic() - started:.0f} s", flush=True)
    for name in RECIPES:
        _print_pooled(name, [line for line in lines_of(TABLE) if line["set"] == name])


def distilled(folder: Path, recipe: Recipe, number: int, width: int = WIDTH, steps: int = STEPS) -> dict[str, Any]:
    """The figures of a split's student on its test rows; `width` is the body's units."""
    for file in ("edistill.toml", "model.py"):
        shutil.copy(HERE / file, folder / file)
    settings = _settings(folder, recipe, number, width, steps)
    cache_logits(settings)
    train(settings)
    return _figures(evaluate(settings, settings.output.name).to_json())


def _settings(folder: Path, recipe: Recipe, seed: int, width: int, steps: int) -> Settings:
    """`edistill.toml` with the settings that differ between splits, as with `--set KEY=VALUE`."""
    rows, inputs = np.load(folder / "data" / "train.npz")["x"].shape
    return load_settings(
        folder / "edistill.toml",
        {
            "teachers.standardized": json.loads((folder / "target.json").read_text(encoding="utf-8")),
            "teachers.model-kwargs": {"inputs": inputs},
            "views.transform": "none",
            "views.count": 1,
            "student.kwargs": {"inputs": inputs, "width": width},
            "train.epochs": math.ceil(steps / (rows // recipe.batch_size)),
            "train.batch-size": recipe.batch_size,
            "train.lr": LR,
            "train.seed": seed,
            "output.name": "patient" if (width, steps) == (WIDTH, STEPS) else f"patient-{width}-{steps}",
            "output.cache": "cache-none",
        },
    )


def _figures(document: dict[str, Any]) -> dict[str, Any]:
    models, fidelity = document["models"], document["fidelity"]
    return {
        **{f"{model}_{figure}": models[model][figure] for figure in FIGURES for model in ("ensemble", "student")},
        **{key: fidelity[key] for key in ("diversity_explained", "model_uncertainty_l1")},
        **worth_of(document),
    }


def _print_pooled(name: str, lines: list[dict[str, str]]) -> None:
    """Print a set's means ± standard errors over the finished splits, as a row of README.md."""
    if not lines:
        return

    def column(key: str) -> np.ndarray:
        return np.array([float(line[key]) for line in lines])

    def told(values: np.ndarray, form: str) -> str:
        error = f" ± {values.std(ddof=1) / math.sqrt(len(values)):{form.lstrip('+')}}" if len(values) > 1 else ""
        return f"{values.mean():{form}}{error}"

    cells = [
        told(100 * (column("student_rmse") / column("ensemble_rmse") - 1), "+.1f"),
        told(column("student_nll") - column("ensemble_nll"), "+.3f"),
        told(100 * (column("student_coverage95") - column("ensemble_coverage95")), "+.1f"),
        told(column("diversity_explained"), ".2f"),
        *(told(column(key), ".1f") for key in MEMBERS),
    ]
    print(f"| {name} | {len(lines)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
