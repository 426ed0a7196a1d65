"""The table of README.md, from what `evaluate --format csv` wrote: python examples/mnist/table.py evaluation.csv"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

METHODS = ("hydra", "kd", "endd", "proxy-endd", "supervised", "batch-ensemble")
SEEDS = (0, 1, 2)
COLUMNS = {  # heading: section and figure
    "ACC": ("quality", "accuracy"),
    "NLL": ("quality", "nll"),
    "BS": ("quality", "brier"),
    "MU": ("uncertainty", "model_uncertainty"),
    "D": ("fidelity", "diversity_explained"),
    "MU l1": ("fidelity", "model_uncertainty_l1"),
    "gap closed": ("fidelity", "gap_closed"),
    "AUROC": ("ood/cifar10", "total_uncertainty"),
    "AUROC by MU": ("ood/cifar10", "model_uncertainty"),
    "parameters": ("cost", "parameters"),
    "MACs": ("cost", "macs"),
}
# Tran et al. 2020, table 1; its BS is the usual Brier score minus 1
PAPER = {
    "Ensemble": (0.9851, 0.0439, -0.9780, 9.97e-6),
    "Prior Networks": (0.9842, 0.0521, -0.9285, 0.1158),
    "Knowledge distillation": (0.9843, 0.0497, -0.9764, None),
    "Hydra [100,100,10]": (0.9857, 0.0465, -0.9776, 2.28e-5),
}


def print_table(evaluation: Path) -> None:
    """Print a Markdown table with a row per system, mean ± standard deviation over seeds, and the paper's rows
    below."""
    with evaluation.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    values = {(line["section"], line["figure"], line["model"]): line["value"] for line in lines}
    print("| | " + " | ".join(COLUMNS) + " |\n|---" + "|---:" * len(COLUMNS) + "|")
    systems = {name: [name] for name in ("ensemble", "member", "best-2", "best-3")}
    systems |= {method: [f"{method}-s{seed}" for seed in SEEDS] for method in METHODS}
    for system, models in systems.items():
        cells = [_cell([values.get((*of, model), "") for model in models], of[1]) for of in COLUMNS.values()]
        print(f"| {system} | " + " | ".join(cells) + " |")
    for system, (accuracy, nll, brier, uncertainty) in PAPER.items():
        told = "–" if uncertainty is None else f"{uncertainty:.4g}"
        rest = " | ".join([f"{accuracy:.4f}", f"{nll:.4f}", f"{brier + 1:.4f}", told] + ["" for _ in range(7)])
        print(f"| paper: {system} | {rest} |")


def _cell(found: list[str], figure: str) -> str:
    known = np.array([float(value) for value in found if value])
    if not len(known):
        return "–"
    if figure in ("parameters", "macs"):
        return f"{known.mean():,.0f}"
    spread = f" ± {known.std(ddof=1):.4f}" if len(known) > 1 else ""
    return f"{known.mean():.4f}{spread}"


if __name__ == "__main__":
    print_table(Path(sys.argv[1]))
