"""How wide a body power-plant needs, from scratch, to predict like its ensemble: python examples/uci/width.py ../shared

The student of patient.py with 50, 100, 200 and 400 units, each trained for 8,000 and 32,000 steps, on the first three
splits. Each finished training is a line of width.csv beside this file, and is then skipped, so that the runs can
continue anywhere.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from common import add_line, arguments, lines_of  # noqa: E402
from ensemble import train_set  # noqa: E402
from patient import RECIPES, distilled  # noqa: E402

TABLE = HERE / "width.csv"
SET = "power-plant"
SPLITS = ("0", "1", "2")
WIDTHS, STEPS = ("50", "100", "200", "400"), ("8000", "32000")


def main() -> None:
    given = arguments(__doc__ or "", HERE, splits=SPLITS, widths=WIDTHS, steps=STEPS)
    for steps, split, width in itertools.product(given.steps, given.splits, given.widths):
        key = {"steps": steps, "width": width, "split": split}
        if any(key.items() <= line.items() for line in lines_of(TABLE)):
            continue
        started = time.monotonic()
        train_set(given.shared / "data" / "uci", SET, given.work, [int(split)])
        folder = given.work / SET / f"split-{split}"
        add_line(TABLE, key | distilled(folder, RECIPES[SET], int(split), int(width), int(steps)))
        print(f"{key}: {time.monotonic() - started:.0f} s", flush=True)
    _print_table(lines_of(TABLE))


def _print_table(lines: list[dict[str, str]]) -> None:
    """Print a row of README.md per number of steps and width: means over splits of what a student is behind."""
    for steps, width in itertools.product(STEPS, WIDTHS):
        of = [line for line in lines if (line["steps"], line["width"]) == (steps, width)]
        if not of:
            continue

        def mean(key: str, of: list[dict[str, str]] = of) -> float:
            return float(np.mean([float(line[key]) for line in of]))

        behind = [100 * (float(line["student_rmse"]) / float(line["ensemble_rmse"]) - 1) for line in of]
        told = " | ".join(f"{mean(key):.2f}" for key in ("diversity_explained", "worth_prediction", "cost_macs"))
        nll = mean("student_nll") - mean("ensemble_nll")
        print(f"| {int(steps):,} | {width} | {len(of)} | {np.mean(behind):+.2f} % | {nll:+.4f} | {told} |")


if __name__ == "__main__":
    main()
