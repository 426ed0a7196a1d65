"""Hydra, distillation and a supervised student on every split of the UCI sets: python examples/uci/run.py ../shared

Trains the ensembles first if they do not exist. Continues where it was interrupted; `--sets boston` runs a part. All
splits run in this one process, by the functions behind the commands of the same names.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import arguments, write_json  # noqa: E402
from ensemble import train_set  # noqa: E402
from splits import FOLDERS, SPLITS  # noqa: E402

from ensemble_distill.settings import Settings, load_settings  # noqa: E402
from ensemble_distill.workflows.cache_logits import cache_logits  # noqa: E402
from ensemble_distill.workflows.evaluate import evaluate_together  # noqa: E402
from ensemble_distill.workflows.train import train  # noqa: E402

METHODS = ("hydra", "kd", "supervised")
STEPS = 2000  # of every student, whatever the size of the set; chosen by validation NLL on the first split of boston
FIGURES = ("rmse", "nll", "coverage95", "data_uncertainty", "model_uncertainty")


def main() -> None:
    given = arguments(__doc__ or "", HERE, sets=FOLDERS)
    for name in given.sets:
        train_set(given.shared / "data" / "uci", name, given.work)
        for number in range(SPLITS):
            folder = given.work / name / f"split-{number}"
            if not (folder / "evaluation.json").exists():
                started = time.monotonic()
                write_json(folder / "evaluation.json", distilled(folder, seed=number))
                print(f"{name}, split {number}: {time.monotonic() - started:.0f} s", flush=True)
    write_results(given.work, given.sets)


def distilled(folder: Path, seed: int) -> dict[str, Any]:
    """Run the whole workflow on one split; returns the document of `evaluate` for its students."""
    for file in ("edistill.toml", "model.py"):
        shutil.copy(HERE / file, folder / file)
    rows, inputs = np.load(folder / "data" / "train.npz")["x"].shape
    settings = settings_of(folder, rows, inputs, seed)
    cache_logits(settings)
    for method in METHODS:
        train(settings_of(folder, rows, inputs, seed, method))
    return evaluate_together(settings, [f"{method}-s{seed}" for method in METHODS]).to_json()


def settings_of(folder: Path, rows: int, inputs: int, seed: int, method: str = METHODS[0]) -> Settings:
    """`edistill.toml` with the settings that differ between splits, as with `--set KEY=VALUE`."""
    given = load_settings(folder / "edistill.toml")
    return load_settings(
        folder / "edistill.toml",
        {
            "teachers.standardized": json.loads((folder / "target.json").read_text(encoding="utf-8")),
            "teachers.model-kwargs": {"inputs": inputs},
            "student.kwargs": {"inputs": inputs},
            "train.epochs": math.ceil(STEPS / (rows // given.train.batch_size)),
            "train.method": method,
            "train.seed": seed,
        },
    )


def write_results(work: Path, sets: list[str]) -> None:
    """Write `results.csv`, a row per split and model, and print their means ± standard errors over splits."""
    rows = []
    for name in sets:
        for number in range(SPLITS):
            together = json.loads((work / name / f"split-{number}" / "evaluation.json").read_text(encoding="utf-8"))
            shared = together["runs"][0]["models"]
            models = {model: shared[model] for model in ("ensemble", "member", "best-2", "best-3")}
            fidelity: dict[str, dict[str, float]] = {}
            for run, method in zip(together["runs"], METHODS, strict=True):
                models[method], fidelity[method] = run["models"]["student"], run["fidelity"]
            for model, figures in models.items():
                explained = fidelity.get(model, {}).get("diversity_explained")
                rows.append([name, number, model, *(figures[key] for key in FIGURES), explained])
    with (work / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "split", "model", *FIGURES, "diversity_explained"])
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    for name in sets:
        print(f"\n{name}\n{'':12}{'rmse':>18}{'nll':>18}{'coverage':>18}{'diversity':>18}")
        for model in dict.fromkeys(row[2] for row in rows):
            own = [row for row in rows if row[0] == name and row[2] == model]
            cells = [_mean([row[column] for row in own]) for column in (3, 4, 5, 8)]
            print(f"{model:12}" + "".join(f"{cell:>18}" for cell in cells))


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{np.mean(known):.4f} ± {np.std(known, ddof=1) / math.sqrt(len(known)):.4f}"


if __name__ == "__main__":
    main()
