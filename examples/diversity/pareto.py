"""What keeping the diversity costs, from SET/search.csv and SET/latency.csv: python examples/diversity/pareto.py mnist

Writes SET/pareto.png: D and NLL against parameters and latency, each as a share of the ensemble's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from table import lines as lines_of  # noqa: E402

COSTS = {"parameters": "parameters ÷ ensemble", "latency": "latency of one row, exported ÷ ensemble"}
GAINS = {"diversity_explained": "diversity explained", "nll_ratio": "NLL ÷ ensemble"}


def main(name: str) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex="col", sharey="row")
    for row, (gain, gained) in zip(axes, GAINS.items(), strict=True):
        for axis, (cost, paid) in zip(row, COSTS.items(), strict=True):
            lines = [line for line in lines_of(name, "search.csv") if line[cost]]
            x = [float(line[cost]) for line in lines]
            y = [float(line[gain]) for line in lines]
            higher = gain == "diversity_explained"
            best = _front(list(zip(x, y if higher else [-v for v in y], strict=True)))
            axis.scatter(x, y, s=14, color="0.6")
            front = sorted((x[i], y[i]) for i in best)
            axis.step(*zip(*front, strict=True), where="post", color="C0")
            for i in best:
                axis.scatter(x[i], y[i], s=22, color="C0")
                axis.annotate(lines[i]["entry"], (x[i], y[i]), fontsize=6, xytext=(4, -8), textcoords="offset points")
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
            if gain == "nll_ratio":
                axis.set_xlabel(paid)
                axis.set_ylim(top=min(1.3, max(y) * 1.02))
            else:
                axis.set_ylim(bottom=max(-0.3, min(y) - 0.05))
        row[0].set_ylabel(gained)
    figure.suptitle(f"{name}, validation rows, seed 0: every entry of the study, and those that no other beats")
    figure.tight_layout()
    figure.savefig(HERE / name / "pareto.png", dpi=110)


def _front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point dominates in both cost and gain."""
    return [
        i for i, (x, y) in enumerate(points) if not any((a <= x and b >= y) and (a < x or b > y) for a, b in points)
    ]


if __name__ == "__main__":
    main(sys.argv[1])
