"""The tables of study.md, from search.csv, final.csv and latency.csv: python examples/diversity/table.py mnist"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from entries import SEARCH  # noqa: E402

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
}
HEADING = "| {} | " + " | ".join(COLUMNS) + " |\n|---" + "|---:" * len(COLUMNS) + "|"


def main(name: str) -> None:
    print(HEADING.format("validation rows, seed 0"))
    for line in lines(name, "search.csv"):
        print(f"| {line['entry']} | " + " | ".join(_number([line], key) for key in COLUMNS.values()) + " |")
    final = lines(name, "final.csv")
    print("\n" + HEADING.format("test rows, mean ± standard deviation"))
    for entry, calibrated in dict.fromkeys((line["entry"], line["calibrated"]) for line in final):
        of = [line for line in final if (line["entry"], line["calibrated"]) == (entry, calibrated)]
        told = f"{entry}, calibrated" if calibrated == "yes" else entry
        print(f"| {told} | " + " | ".join(_number(of, key) for key in COLUMNS.values()) + " |")
        print(f"  <!-- {len(of)} seeds; AUROC by model uncertainty less the ensemble's: {_aurocs(of)} -->")


def lines(name: str, table: str) -> list[dict[str, str]]:
    """A table of a set, in the order of the entries, each line with the latency of its architecture: empty where that
    was not measured."""
    measured = {line["architecture"]: line["latency"] for line in _read(HERE / name / "latency.csv")}
    entries = {entry.name: entry for entry in SEARCH[name]}
    found = [
        {**line, "latency": measured.get(entries[line["entry"]].architecture, "")}
        for line in _read(HERE / name / table)
    ]
    return sorted(found, key=lambda line: list(entries).index(line["entry"]))


def _read(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(lines: list[dict[str, str]], key: str) -> str:
    found = np.array([float(line[key]) for line in lines if line[key]])
    if not len(found):
        return "–"
    digits = 2 if key in ("parameters", "macs", "latency") else 3
    spread = (
        f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 and key not in ("parameters", "macs", "latency") else ""
    )
    return f"{found.mean():.{digits}f}{spread}"


def _aurocs(lines: list[dict[str, str]]) -> str:
    """Each set's difference, as a mean over seeds."""
    pairs = [line["auroc_differences"].split() for line in lines]
    named = {pair[at]: at for pair in pairs for at in range(0, len(pair), 2)}
    return ", ".join(f"{name} {np.mean([float(pair[at + 1]) for pair in pairs]):+.4f}" for name, at in named.items())


if __name__ == "__main__":
    main(sys.argv[1])
