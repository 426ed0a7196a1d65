"""When born-again training pays: python examples/born_again/curve.py [--study few-views] [--picture curve.png]

The converged study's differences from plain training, by the epochs that teachers and students are trained for.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
from arms import STUDIES, Study  # noqa: E402
from claims import Claim  # noqa: E402
from pairs import SCALE, Lines, interval, lines_of, paired  # noqa: E402

STUDENTS, BESIDE = ("ban-1", "ban+l"), ("teacher", "second")
MEASURES = {"nll": ("NLL", 4), "error": ("error, points", 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", choices=STUDIES, default="converged", help="default converged")
    parser.add_argument("--results", type=Path, help="folder of the study's lines; default its own beside this file")
    parser.add_argument("--picture", type=Path, help="draw the curves, too, as .png or .svg")
    given = parser.parse_args()
    study: Study = STUDIES[given.study]
    folder: Path = given.results or HERE / study.folder
    lengths = lengths_of(study)
    results = {group: lines_of(folder / f"results-{group}.csv") for group in lengths}
    print_curve(results, lengths)
    if given.picture:
        draw(results, lengths, given.picture)


def lengths_of(study: Study, family: str = "wrn") -> dict[str, int]:
    """The names of a family's groups with their epochs, the shortest first."""
    of = {name: group.epochs for name, group in study.groups.items() if group.family == family}
    return dict(sorted(of.items(), key=lambda pair: pair[1]))


def print_curve(results: Mapping[str, Lines], lengths: Mapping[str, int]) -> None:
    told = " | ".join(f"{first} − {second}, {name}" for name, _ in MEASURES.values() for first, second in _pairs())
    print(f"| epochs | seeds | error of teachers on training rows, % | {told} |\n|---:|---:|---:" + "|---" * 8 + "|")
    for group, epochs in lengths.items():
        teachers = [line for line in results[group] if line["arm"] == "teacher"]
        if not teachers:
            continue
        fitted = SCALE["train_error"] * sum(float(line["train_error"]) for line in teachers) / len(teachers)
        cells = [
            _told(Claim((group, first), (group, second)), results, measure, digits)
            for measure, (_, digits) in MEASURES.items()
            for first, second in _pairs()
        ]
        print(f"| {epochs} | {len(teachers)} | {fitted:.1f} | " + " | ".join(cells) + " |")


def _pairs() -> list[tuple[str, str]]:
    return [(first, second) for first in STUDENTS for second in BESIDE]


def _told(claim: Claim, results: Mapping[str, Lines], measure: str, digits: int) -> str:
    differences = paired(claim, results, measure)
    if not len(differences):
        return "–"
    if len(differences) == 1:
        return f"{differences[0]:+.{digits}f}"
    low, high = interval(differences)
    return f"{differences.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def draw(results: Mapping[str, Lines], lengths: Mapping[str, int], path: Path) -> None:
    """Draw a panel per measure and a line per student: its difference from its own teacher, with 95 % intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(MEASURES), figsize=(9, 3.4), layout="constrained")
    for axes, (measure, (name, _)) in zip(panels, MEASURES.items(), strict=True):
        for student, style in zip(STUDENTS, ("o-", "s--"), strict=True):
            epochs, means, bars = [], [], []
            for group, length in lengths.items():
                differences = paired(Claim((group, student), (group, "teacher")), results, measure)
                if len(differences) > 1:
                    epochs.append(length)
                    means.append(differences.mean())
                    bars.append(differences.mean() - interval(differences)[0])
            axes.errorbar(epochs, means, bars, fmt=style, capsize=3, label=student)
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set(xscale="log", xlabel="epochs", ylabel=f"{name}, student − teacher")
        axes.set_xticks(list(lengths.values()), [str(length) for length in lengths.values()], minor=False)
        axes.minorticks_off()
    panels[0].legend()
    description = re.sub(r"\s+", " ", __doc__ or "")
    figure.savefig(path, dpi=150, metadata={"Description": description} if path.suffix == ".png" else None)


if __name__ == "__main__":
    main()
