"""The tables of study.md, from the lines of a study: python examples/born_again/table.py [--study converged]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
from arms import GRADIENTS, STUDIES, Study  # noqa: E402
from claims import Claim, claims_of  # noqa: E402
from pairs import LEVEL, SCALE, Lines, interval, lines_of, paired  # noqa: E402

MEASURES = {"nll": "NLL", "error": "error, %"}
Verdict = tuple[str, Claim, str, str]  # the table, the claim, the measure, and what its interval shows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", choices=STUDIES, default="brief", help="default brief")
    parser.add_argument("--results", type=Path, help="folder of the study's lines; default its own beside this file")
    given = parser.parse_args()
    study: Study = STUDIES[given.study]
    folder: Path = given.results or HERE / study.folder
    results = {group: lines_of(folder / f"results-{group}.csv") for group in study.names()}
    for group, lines in results.items():
        _print_arms(group, lines)
    verdicts = [
        verdict for name, claims in claims_of(study).items() for verdict in _print_claims(name, claims, results)
    ]
    _print_orderings(verdicts)
    _print_gradients({group: lines_of(folder / f"gradients-{group}.csv") for group in study.groups})


def _print_arms(group: str, lines: Lines) -> None:
    if not lines:
        return
    columns = {**MEASURES, "ece": "ECE", "model_uncertainty": "model uncertainty", "parameters": "parameters"}
    if any(line.get("train_error") for line in lines):
        columns["train_error"] = "error on training rows, %"
    print(f"\n| {group} | seeds | " + " | ".join(columns.values()) + " |\n|---" + "|---:" * (len(columns) + 1) + "|")
    for arm in dict.fromkeys(line["arm"] for line in lines):
        of = [line for line in lines if line["arm"] == arm]
        print(f"| {arm} | {len(of)} | " + " | ".join(_spread(of, column) for column in columns) + " |")
    hydra = [line for line in lines if line["arm"] == "hydra"]
    if hydra:
        share = np.mean([float(line["parameters"]) / float(line["parameters_of_teachers"]) for line in hydra])
        explained = _spread(hydra, "diversity_explained")
        print(f"\nhydra explains {explained} % of the diversity of bane-3, with {share:.2f} of its parameters.")


def _print_claims(name: str, claims: Sequence[Claim], results: Mapping[str, Lines]) -> list[Verdict]:
    """Print paired differences by seed and their verdict for each measure; nothing until some seed has a pair."""
    if not any(len(paired(claim, results, "nll")) for claim in claims):
        return []
    heads = " | ".join(f"{told} | verdict" for told in MEASURES.values())
    print(f"\n| {name} | seeds | paper, lower error in | {heads} |\n|---|---:|---" + "|---:|---" * len(MEASURES) + "|")
    verdicts: list[Verdict] = []
    for claim in claims:
        cells: list[str] = []
        for measure in MEASURES:
            differences = paired(claim, results, measure)
            if len(differences) < 2:
                cells += ["–", "–"]
                continue
            low, high = interval(differences)
            verdict = "better" if high < 0 else "worse" if low > 0 else "cannot tell"
            verdicts.append((name, claim, measure, verdict))
            digits = 2 if measure == "error" else 4
            cells += [f"{differences.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]", verdict]
        seeds = len(paired(claim, results, "nll"))
        paper = f"{claim.lower} of {claim.networks}: {claim.ordering}" if claim.ordering else "–"
        print(f"| {claim} | {seeds} | {paper} | " + " | ".join(cells) + " |")
    return verdicts


def _print_orderings(verdicts: Sequence[Verdict]) -> None:
    """Print which of the paper's orderings held, and how many verdicts chance alone would give."""
    for measure, told in MEASURES.items():
        found: dict[str, list[str]] = {"held": [], "the other way round": [], "cannot tell": []}
        for name, claim, of, verdict in verdicts:
            if of == measure and claim.ordering in ("better", "worse"):
                held = "held" if verdict == claim.ordering else "the other way round"
                found[verdict if verdict == "cannot tell" else held].append(f"{claim} ({name})")
        print(f"\nThe paper's orderings by {told.split(',')[0]}:\n")
        for answer, claims in found.items():
            print(f"- {answer}, {len(claims)}: {', '.join(claims) or 'none'}")
    clear = sum(verdict != "cannot tell" for *_, verdict in verdicts)
    chance = (1 - LEVEL) * len(verdicts)
    print(
        f"\n{clear} of {len(verdicts)} intervals leave 0 out; if no arms differed, about {chance:.0f} would by chance."
    )


def _print_gradients(gradients: Mapping[str, Lines]) -> None:
    """Print the share of dark knowledge in the gradient's squared norm, at three epochs."""
    print("\n| dark knowledge, % of the gradient of KL(teacher ‖ student) | first epoch | middle | last |")
    print("|---|---:|---:|---:|")
    for family, lines in gradients.items():
        for arm in GRADIENTS:
            of = [line for line in lines if line["arm"] == arm]
            if not of:
                continue
            last = max(int(line["epoch"]) for line in of)
            shares = []
            for epoch in (1, (1 + last) // 2, last):
                at = [line for line in of if int(line["epoch"]) == epoch]
                label, dark = (np.array([float(line[f"gradient_{part}"]) for line in at]) for part in ("label", "dark"))
                shares.append(_told(100 * dark / (label + dark), 1))
            print(f"| {family} {arm} | " + " | ".join(shares) + " |")


def _spread(lines: Lines, column: str) -> str:
    found = np.array([float(line[column]) for line in lines if line.get(column)]) * SCALE.get(column, 1.0)
    if column == "parameters":
        return f"{found.mean():,.0f}"
    return _told(found, 2 if column.endswith("error") else 1 if column == "diversity_explained" else 4)


def _told(found: NDArray[np.float64], digits: int) -> str:
    """Mean ± standard deviation."""
    if not len(found):
        return "–"
    return f"{found.mean():.{digits}f}" + (f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 else "")


if __name__ == "__main__":
    main()
