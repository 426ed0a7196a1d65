"""A patient student from scratch on MNIST: python examples/mnist/patient.py ../shared

The hydra of run.py, one body of 200 units with heads [100, 100, 10] and no start from members, trained for more epochs
at a higher rate: 48 on 16 views, or 96 on 32, so that each view is seen three times. Each finished training is a line
of patient.csv beside this file, and is then skipped, so that the runs can continue anywhere. `--epochs 96 --seeds 0`
runs one of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from common import add_line, arguments, edistill, lines_of, worth_of  # noqa: E402
from run import prepare  # noqa: E402

TABLE = HERE / "patient.csv"
SEEDS = ("0", "1", "2")
VIEWS = {"48": 16, "96": 32}  # by epochs; all trainings of one folder share a cache, which grows by what is missing
RECIPE = (
    "--batch-size 256 --lr 4e-3 --warmup-epochs 2 --set method.hinton-share=0 --set method.closed-form=false "
    "--set method.temperature=2"
)
FIGURES = ("accuracy", "nll", "model_uncertainty")


def main() -> None:
    given = arguments(__doc__ or "", HERE, seeds=SEEDS, epochs=VIEWS)
    for epochs in given.epochs:
        for seed in given.seeds:
            if (epochs, seed) not in {(line["epochs"], line["seed"]) for line in lines_of(TABLE)}:
                prepare(given.shared, given.work)
                add_line(TABLE, {"epochs": epochs, "seed": seed, **_trained(given.work, epochs, seed)})
    for epochs in given.epochs:
        _print_table(epochs, [line for line in lines_of(TABLE) if line["epochs"] == epochs])


def _trained(work: Path, epochs: str, seed: str) -> dict[str, Any]:
    """The figures of `evaluate` on the test rows, the seconds of everything, and the training command."""
    started = time.monotonic()
    name = f"patient-{epochs}-s{seed}"
    views = f"--set views.transform=affine+mixup --set views.count={VIEWS[epochs]} --set output.cache=cache-patient"
    command = f"train --name {name} --seed {seed} --epochs {epochs} {RECIPE} {views}"
    edistill(work, f"cache-logits {views}", command)
    document = _evaluated(work, name, views)
    return {**_figures(document), "seconds": round(time.monotonic() - started), "command": f"edistill {command}"}


def _evaluated(work: Path, run: str, views: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "ensemble_distill", "evaluate", run, "--json", *views.split()]
    found: dict[str, Any] = json.loads(subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE).stdout)
    return found


def _figures(document: dict[str, Any]) -> dict[str, Any]:
    models, fidelity = document["models"], document["fidelity"]
    keys = ("diversity_explained", "model_uncertainty_l1", "model_uncertainty_ratio", "gap_closed")
    return {
        **{f"{model}_{key}": models[model].get(key) for model in ("ensemble", "member", "student") for key in FIGURES},
        **{key: fidelity[key] for key in keys},
        **worth_of(document),
    }


def _print_table(epochs: str, lines: list[dict[str, str]]) -> None:
    """Print means ± standard deviations over seeds, a figure per line."""
    print(f"\n{epochs} epochs, {len(lines)} of {len(SEEDS)} seeds")
    for key in lines[0] if lines else ():
        if key not in ("epochs", "seed", "seconds", "command") and lines[0][key] not in ("", "None"):
            values = np.array([float(line[key]) for line in lines])
            print(f"{key:28}{values.mean():10.4f} ± {values.std(ddof=1) if len(values) > 1 else np.nan:.4f}")


if __name__ == "__main__":
    main()
