"""How to keep the diversity, one idea at a time: python examples/diversity/study.py mnist ../shared

Trains each entry of entries.py, evaluates it on the validation rows, and adds its figures as a line to SET/search.csv.
Entries that have their line are skipped, so that the study can continue anywhere, unless `--again` is given. `--final`
trains the chosen entries with three seeds, calibrates them, and evaluates them on the test rows: SET/final.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "mnist")]
from entries import FINAL, SEARCH, Entry  # noqa: E402
from folders import PREPARE  # noqa: E402

SEEDS = (0, 1, 2)
COLUMNS = (
    *("entry", "seed", "calibrated", "split", "diversity_explained", "deviation_correlation", "model_uncertainty_l1"),
    *("model_uncertainty_ratio", "model_uncertainty_spearman", "model_uncertainty_spearman_control", "gap_closed"),
    *("nll", "nll_ratio", "member_kl", "mean_kl", "auroc_differences", "parameters", "macs", "seconds"),
    "command",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=sorted(SEARCH))
    parser.add_argument("shared", type=Path, help="folder that holds data/ and teachers/")
    parser.add_argument("--work", type=Path, help="where data, caches and runs go")
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="these entries alone")
    parser.add_argument("--again", action="store_true", help="train them anew, though they have their lines")
    parser.add_argument("--final", action="store_true", help="the chosen entries, three seeds, on test rows")
    given = parser.parse_args()
    known = {entry.name: entry for entry in SEARCH[given.set] if not given.final or entry.name in FINAL[given.set]}
    if unknown := [name for name in given.only or () if name not in known]:
        parser.error(f"{given.set} has no {' and no '.join(unknown)}; it has {', '.join(known)}")
    work: Path = given.work or HERE / "output" / given.set
    work.mkdir(parents=True, exist_ok=True)
    PREPARE[given.set](given.shared, work)
    shutil.copy(HERE / given.set / "edistill.toml", work)
    shutil.copy(HERE / given.set / "model.py", work / "student.py")
    table = HERE / given.set / ("final.csv" if given.final else "search.csv")
    for name in given.only or known:
        if given.again:
            _forget(table, work, name)
        if given.final:
            for seed in SEEDS:
                _final(work, table, known[name], seed)
        else:
            _search(work, table, known[name])


def _forget(table: Path, work: Path, entry: str) -> None:
    """Remove the lines and the runs of an entry."""
    _save(table, [line for line in _lines(table) if line["entry"] != entry])
    for run in (work / "runs").glob(f"{entry}-s[0-9]"):
        shutil.rmtree(run)


def _search(work: Path, table: Path, entry: Entry) -> None:
    if (entry.name, "0", "validation", "no") in _done(table):
        return
    started = time.monotonic()
    name = _uncalibrated(work, entry, 0)
    _write(table, work, entry, name, 0, "validation", started)


def _final(work: Path, table: Path, entry: Entry, seed: int) -> None:
    started = time.monotonic()
    if (entry.name, str(seed), "test", "no") not in _done(table):
        name = _uncalibrated(work, entry, seed)
        _write(table, work, entry, name, seed, "test", started)
    started = time.monotonic()
    if (entry.name, str(seed), "test", "yes") not in _done(table):
        name = _trained(work, entry, seed)
        _edistill(work, "calibrate", name, *entry.views)
        _write(table, work, entry, name, seed, "test", started)


def _uncalibrated(work: Path, entry: Entry, seed: int) -> str:
    name = _trained(work, entry, seed)
    if (work / "runs" / name / "calibration.json").exists():
        _edistill(work, "calibrate", name, "--remove")
    return name


def _trained(work: Path, entry: Entry, seed: int) -> str:
    name = f"{entry.name}-s{seed}"
    _edistill(work, "cache-logits", *entry.views)
    _edistill(work, "train", "--name", name, "--seed", str(seed), *entry.views, *entry.flags)
    return name


def _write(table: Path, work: Path, entry: Entry, name: str, seed: int, split: str, started: float) -> None:
    """Add the line of a run to a table."""
    document = json.loads(_edistill(work, "evaluate", name, "--split", split, "--json", *entry.views))
    fidelity, models, cost = document["fidelity"], document["models"], document["cost"]
    nll = models["student"]["nll"]
    apart = {
        ood: scores["student"]["model_uncertainty"] - scores["ensemble"]["model_uncertainty"]
        for ood, scores in document["ood"].items()
    }
    line: dict[str, Any] = {
        **{column: fidelity[column] for column in COLUMNS if column in fidelity},
        "entry": entry.name,
        "seed": seed,
        "calibrated": "yes" if (work / "runs" / name / "calibration.json").exists() else "no",
        "split": split,
        "nll": nll,
        "nll_ratio": nll / models["ensemble"]["nll"],
        "auroc_differences": " ".join(f"{ood} {difference:+.4f}" for ood, difference in apart.items()),
        "parameters": cost["student"]["parameters"] / cost["ensemble"]["parameters"],
        "macs": cost["student"]["macs"] / cost["ensemble"]["macs"],
        "seconds": f"{time.monotonic() - started:.0f}",
        "command": " ".join(("edistill train", *(_quoted(flag) for flag in (*entry.views, *entry.flags)))),
    }
    lines = [*_lines(table), {key: f"{v:.4f}" if isinstance(v, float) else v for key, v in line.items()}]
    _save(table, lines)
    print({key: lines[-1].get(key) for key in COLUMNS[:-1]}, flush=True)


def _save(table: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _lines(table: Path) -> list[Mapping[str, Any]]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _done(table: Path) -> set[tuple[str, str, str, str]]:
    return {(line["entry"], line["seed"], line["split"], line["calibrated"]) for line in _lines(table)}


def _quoted(flag: str) -> str:
    return f"'{flag}'" if any(c in flag for c in '[]{}"') else flag


def _edistill(work: Path, *arguments: str) -> str:
    """Run `edistill` in `work`; returns its stdout."""
    print("$ edistill", " ".join(_quoted(argument) for argument in arguments), flush=True)
    command = [sys.executable, "-m", "ensemble_distill", *arguments]
    return subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
