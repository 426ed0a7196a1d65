"""Students that start from their members: python examples/uci/from_members.py ../shared --sets concrete

The first layers of ten members side by side, a bottleneck of 24 channels that all heads read and, for every member, the
least-squares map to the output of its own second layer, followed by its output layer; then 2,000 steps, as for the
students of run.py. Continues where it was interrupted.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from common import arguments, write_json  # noqa: E402
from ensemble import train_set  # noqa: E402
from run import STEPS  # noqa: E402
from splits import FOLDERS, SPLITS  # noqa: E402

from ensemble_distill.settings import Settings, load_settings  # noqa: E402
from ensemble_distill.workflows.cache_logits import cache_logits  # noqa: E402
from ensemble_distill.workflows.evaluate import evaluate  # noqa: E402
from ensemble_distill.workflows.train import train  # noqa: E402

BODIES, RANK, LR = 10, 24, 1e-3
FIGURES = ("rmse", "nll", "coverage95")


def main() -> None:
    given = arguments(__doc__ or "", HERE, sets=FOLDERS)
    for name in given.sets:
        train_set(given.shared / "data" / "uci", name, given.work)
        for number in range(SPLITS):
            folder = given.work / name / f"split-{number}"
            if not (folder / "from_members.json").exists():
                for file in ("edistill.toml", "model.py"):
                    shutil.copy(HERE / file, folder / file)
                settings = settings_of(folder, number)
                cache_logits(settings)
                train(settings)
                write_json(folder / "from_members.json", evaluate(settings, "from-members").to_json())
            rows = _write(given.work)
            print(f"{name} split-{number} is done", flush=True)
    _print_pooled(np.array([row[0] for row in rows]), np.array([row[2:] for row in rows]))


def _write(work: Path) -> list[list[Any]]:
    """Write the table of all finished splits of all sets; returns its rows."""
    rows = []
    for name in FOLDERS:
        for number in range(SPLITS):
            file = work / name / f"split-{number}" / "from_members.json"
            if file.exists():
                rows.append([name, number, *_figures(json.loads(file.read_text(encoding="utf-8")))])
    with (work / "from_members.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        shared = [f"{model}_{figure}" for figure in FIGURES for model in ("ensemble", "student")]
        writer.writerow(["set", "split", *shared, "diversity_explained", "model_uncertainty_l1", "parameters"])
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    return rows


def settings_of(folder: Path, seed: int) -> Settings:
    """`edistill.toml` with the settings that differ between splits, as with `--set KEY=VALUE`."""
    rows, inputs = np.load(folder / "data" / "train.npz")["x"].shape
    given = load_settings(folder / "edistill.toml")
    return load_settings(
        folder / "edistill.toml",
        {
            "teachers.standardized": json.loads((folder / "target.json").read_text(encoding="utf-8")),
            "teachers.model-kwargs": {"inputs": inputs},
            "student.model": str(folder / "model.py") + ":make_whole",
            "student.kwargs": {"inputs": inputs},
            "student.init": [f"member-{index:02d}" for index in range(BODIES)],
            "student.heads": {"last-stage": "4", "adapt-from": "3", "rank": RANK},
            "train.epochs": math.ceil(STEPS / (rows // given.train.batch_size)),
            "train.lr": LR,
            "train.seed": seed,
            "output.name": "from-members",
        },
    )


def _figures(document: dict[str, Any]) -> list[float]:
    models, cost, fidelity = document["models"], document["cost"], document["fidelity"]
    found = [models[model][figure] for figure in FIGURES for model in ("ensemble", "student")]
    share = cost["student"]["parameters"] / cost["ensemble"]["parameters"]
    return [*found, fidelity["diversity_explained"], fidelity["model_uncertainty_l1"], share]


def _print_pooled(names: np.ndarray, values: np.ndarray) -> None:
    """Print each set's means ± standard errors over splits, relative to the ensemble's."""
    for name in dict.fromkeys(names):
        rmse, rmse_s, nll, nll_s, covered, covered_s, explained, l1, share = values[names == name].T
        apart = {"RMSE": rmse_s / rmse - 1, "NLL": nll_s - nll, "coverage": covered_s - covered}
        told = [f"{key} {v.mean():+.4f} ± {v.std(ddof=1) / math.sqrt(len(v)):.4f}" for key, v in apart.items()]
        print(f"{name}: {', '.join(told)}, D {explained.mean():.3f}, l1 {l1.mean():.3f}, parameters {share.mean():.2f}")


if __name__ == "__main__":
    main()
