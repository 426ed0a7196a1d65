"""The tables of study.md, from the .csv files of a set: python examples/diversity/table.py mnist"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from entries import SEARCH  # noqa: E402

from ensemble_distill.evaluation.worth import rung  # noqa: E402

COLUMNS = {
    "D": "diversity_explained",
    "MU l1": "model_uncertainty_l1",
    "MU ratio": "model_uncertainty_ratio",
    "Spearman": "model_uncertainty_spearman",
    "control": "model_uncertainty_spearman_control",
    "NLL ÷ ensemble": "nll_ratio",
    "gap closed": "gap_closed",
    "parameters": "parameters",
    "MACs": "macs",
    "latency": "latency",
    "worth: prediction": "worth_prediction",
    "uncertainty": "worth_uncertainty",
    "cost: latency": "cost",
}
IN_MEMBERS = ("worth_prediction", "worth_uncertainty", "cost")
COSTS = ("parameters", "macs", "latency")
SCALED = 0.01  # allowed distance from 1 of the ratio of the mean model uncertainties


def main(name: str) -> None:
    laddered = (HERE / name / "ladder.csv").exists()
    columns = {title: key for title, key in COLUMNS.items() if laddered or key not in IN_MEMBERS}
    heading = "| {} | " + " | ".join(columns) + " |\n|---" + "|---:" * len(columns) + "|"
    print(heading.format("validation rows, seed 0"))
    for line in lines(name, "search.csv"):
        print(f"| {line['entry']} | " + " | ".join(_number([line], key) for key in columns.values()) + " |")
    final = lines(name, "final.csv")
    print("\n" + heading.format("test rows, mean ± standard deviation"))
    for entry, calibrated in dict.fromkeys((line["entry"], line["calibrated"]) for line in final):
        of = [line for line in final if (line["entry"], line["calibrated"]) == (entry, calibrated)]
        told = f"{entry}, calibrated" if calibrated == "yes" else entry
        print(f"| {told} | " + " | ".join(_number(of, key) for key in columns.values()) + " |")
        print(f"  <!-- {len(of)} seeds; AUROC by model uncertainty less the ensemble's: {_aurocs(of)} -->")


def lines(name: str, table: str) -> list[dict[str, str]]:
    """The lines of a set's table in the order of the entries, with latency, worth and cost.

    The latency is that of the entry's architecture, "" if it was not measured; worth and cost are in members.
    """
    measured = {line["architecture"]: line["latency"] for line in _read(HERE / name / "latency.csv")}
    entries = {entry.name: entry for entry in SEARCH[name]}
    found = [
        {**line, "latency": measured.get(entries[line["entry"]].architecture, "")}
        for line in _read(HERE / name / table)
    ]
    ladder = _read(HERE / name / "ladder.csv")
    found = [
        {**line, **_in_members(line, [step for step in ladder if step["split"] == line["split"]])} for line in found
    ]
    return sorted(found, key=lambda line: list(entries).index(line["entry"]))


def _in_members(line: dict[str, str], ladder: list[dict[str, str]]) -> dict[str, str]:
    """The worth and cost of a line, in members.

    Worth in uncertainty exists only where the mean model uncertainty equals the ensemble's, as after calibration, since
    the ladder's l1 is scaled that way.
    """
    if not ladder:
        return dict.fromkeys(IN_MEMBERS, "")
    nll, l1 = ([float(step[key]) for step in ladder] for key in ("nll", "model_uncertainty_l1"))
    scaled = abs(float(line["model_uncertainty_ratio"]) - 1) < SCALED
    return {
        "worth_prediction": str(rung(float(line["nll_ratio"]) * nll[-1], nll)),
        "worth_uncertainty": str(rung(float(line["model_uncertainty_l1"]), l1)) if scaled else "",
        "cost": str(float(line["latency"]) * len(ladder)) if line["latency"] else "",
    }


def _read(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(lines: list[dict[str, str]], key: str) -> str:
    found = np.array([float(line[key]) for line in lines if line[key]])
    if not len(found):
        return "–"
    digits = 1 if key in IN_MEMBERS else 2 if key in COSTS else 3
    spread = f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 and key not in (*COSTS, "cost") else ""
    return f"{found.mean():.{digits}f}{spread}"


def _aurocs(lines: list[dict[str, str]]) -> str:
    """The difference of each set, as a mean over seeds."""
    pairs = [line["auroc_differences"].split() for line in lines]
    named = {pair[at]: at for pair in pairs for at in range(0, len(pair), 2)}
    return ", ".join(f"{name} {np.mean([float(pair[at + 1]) for pair in pairs]):+.4f}" for name, at in named.items())


if __name__ == "__main__":
    main(sys.argv[1])
