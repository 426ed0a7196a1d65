"""Draw the ladder of an ensemble's own sub-ensembles, and where students stand on it.

    edistill evaluate kd-s0 hydra-s0 --json > runs.json
    python examples/evaluate/ladder.py runs.json

writes `ladder.png`: figures by the number of members, with each student at its cost. A student below the line is worth
more members than it costs. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

NAMES = {"nll": "NLL", "mean_kl": "mean KL, nats", "model_uncertainty_l1": "l1 of the model uncertainty, ratio 1"}


def at(run: dict[str, Any], figure: str, worth: float | None) -> float | None:
    """The student's figure; for model uncertainty that of the ladder at its worth, interpolated between steps."""
    if worth is None:
        return None
    if figure == "nll":
        return float(run["models"]["student"]["nll"])
    if figure == "mean_kl":
        return float(run["fidelity"]["mean_kl"])
    steps, below = run["ladder"][figure], max(1, int(worth))
    above = min(below + 1, len(steps))
    return float(steps[below - 1] + (worth - below) * (steps[above - 1] - steps[below - 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path, help="what `edistill evaluate RUN … --json` printed")
    parser.add_argument("--output", type=Path, default=Path("ladder.png"))
    args = parser.parse_args()
    document = json.loads(args.document.read_text())
    runs = document.get("runs", [document])
    ladder = runs[0]["ladder"]
    figures = [name for name in NAMES if ladder and ladder[name] is not None]
    if not figures:
        parser.error(f"{args.document} has no ladder: its ensemble is a single teacher")
    _, axes = plt.subplots(1, len(figures), figsize=(4.6 * len(figures), 3.6), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], figures, strict=True):
        axis.plot(range(1, len(ladder[name]) + 1), ladder[name], "o-", color="0.5", label="that many members")
        for run in runs:
            worth = run["worth"]["student"]
            kind = {"nll": "prediction", "mean_kl": "fidelity", "model_uncertainty_l1": "uncertainty"}[name]
            value = at(run, name, worth[kind])
            if worth["cost"] is not None and value is not None:
                axis.plot(worth["cost"]["latency"], value, "D", label=run["run"])
        axis.set(xlabel="members, in latency", ylabel=NAMES[name])
    axes[0][0].legend()
    plt.savefig(args.output, dpi=100)
    print(args.output)


if __name__ == "__main__":
    main()
