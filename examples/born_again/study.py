"""Born-Again Networks on CIFAR-10, five seeds: python examples/born_again/study.py ../shared --work DIR

Trains and evaluates the plan in arms.py: `--study brief` (the default), `converged` or `few-views`. The figures of an
arm and seed on the test rows become a line of results-GROUP.csv in the study's folder, and the split of its gradient
lines of gradients-GROUP.csv. Arms that have their line are skipped, so the study can continue anywhere. Groups can run
in parallel processes. The exit status is 1 while lines are missing.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
from arms import GRADIENTS, STUDENT, STUDIES, Planned, Study  # noqa: E402
from folders import prepare  # noqa: E402

SEEDS = (0, 1, 2, 3, 4)  # each is a pair in every comparison
FIGURES = ("nll", "brier", "ece", "total_uncertainty", "data_uncertainty", "model_uncertainty")
COLUMNS = (
    *("arm", "seed", "nll", "error", "brier", "ece", "total_uncertainty", "data_uncertainty", "model_uncertainty"),
    *("diversity_explained", "parameters", "parameters_of_teachers", "train_error", "seconds", "command"),
)
SPLIT = ("gradient_label", "gradient_dark", "train_loss", "validation_nll")
Line = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path, help="folder with data/cifar10.zip: ROOT/train/CLASS/*.jpg, ROOT/test/…")
    parser.add_argument("--work", type=Path, default=HERE / "output", help="where data, caches and runs go")
    parser.add_argument("--study", choices=STUDIES, default="brief", help="which one; default brief")
    parser.add_argument("--groups", nargs="+", help="some of the study's; default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="default 0 1 2 3 4")
    parser.add_argument("--brief", action="store_true", help="of each group teacher, second, ban-1 and ban+l alone")
    parser.add_argument("--float32", action="store_true", help="where the processor does not multiply bfloat16")
    parser.add_argument("--into", type=Path, help="where the tables go; default the study's folder beside this file")
    given = parser.parse_args()
    study: Study = STUDIES[given.study]
    groups: list[str] = given.groups or list(study.names())
    if unknown := set(groups) - set(study.names()):
        parser.error(f"{sorted(unknown)} are no groups of {given.study}, which has {', '.join(study.names())}")
    if not (given.shared / "data" / "cifar10.zip").is_file():
        parser.error(f"{given.shared} has no data/cifar10.zip (ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg in it)")
    prepare(study, given.shared, given.work)
    missing = 0
    for seed in given.seeds:  # the outer loop, so that an unfinished study has whole pairs
        for group in groups:
            plan = study.planned(group, seed, given.brief)
            if given.float32:
                plan = [replace(run, flags=(*run.flags, "--no-amp")) for run in plan]
            missing += _Seed(given.work, given.into or HERE / study.folder, group, seed, plan).run()
    print(f"{missing} arms have no line yet." if missing else "Every arm has its line.", flush=True)
    return 1 if missing else 0


class _Seed:
    """One group with one seed."""

    def __init__(self, work: Path, into: Path, group: str, seed: int, plan: Sequence[Planned]) -> None:
        self.work, self.seed, self.plan = work, seed, plan
        self.results, self.gradients = into / f"results-{group}.csv", into / f"gradients-{group}.csv"
        self.cached: set[tuple[str, ...]] = set()

    def run(self) -> int:
        """Train and evaluate the runs that have no line; returns how many arms still have none."""
        todo = [run for run in self.plan if not self._done(run)]
        needed = {run.name for run in todo}
        for run in reversed(self.plan):  # a run follows those that it needs
            if run.name in needed:
                needed |= set(run.needs)
        trained: list[str] = []
        for run in self.plan:
            if run.name in needed and all(name in trained for name in run.needs) and self._train(run):
                trained.append(run.name)
        for run in todo:
            if run.name in trained:
                self._evaluate(run)
        return sum(len(run.arms) for run in self.plan if not self._done(run))

    def _done(self, run: Planned) -> bool:
        done = {(line["arm"], line["seed"]) for line in _lines(self.results)}
        return all((arm, str(self.seed)) in done for arm in run.arms)

    def _train(self, run: Planned) -> bool:
        for teacher in run.lent:
            if not (self.work / "runs" / teacher / "student.safetensors").exists():
                print(f"{run.name} waits for {teacher}, which another group trains.", flush=True)
                return False
        if run.settings not in self.cached:
            if self._edistill("cache-logits", *run.settings) is None:
                return False
            self.cached.add(run.settings)
        return self._edistill("train", "--name", run.name, *run.settings, *run.flags) is not None

    def _evaluate(self, run: Planned) -> None:
        """Add the lines of a run to the tables."""
        printed = self._edistill("evaluate", f"runs/{run.name}", "--split", "test", "--json", *run.settings)
        if printed is None:
            return
        document = json.loads(printed)
        for arm, model in run.arms.items():
            self._add(run, arm, document, model)
            if arm in GRADIENTS:
                self._add_gradients(arm, run.folders()[arm])

    def _add(self, run: Planned, arm: str, document: Mapping[str, Any], model: str) -> None:
        figures, cost = document["models"][model], document["cost"]
        plain = arm in ("teacher", "second")
        averaged = int(model.removeprefix("bane-")) if model.startswith("bane-") else 1
        folders = [run.folders()[arm]]
        if averaged > 1:
            folders = [f"{run.name}/generation-{k}" for k in range(1, averaged + 1)]
        hydra = arm == "hydra"
        line = {
            "arm": arm,
            "seed": self.seed,
            **{name: figures[name] for name in FIGURES},
            "error": 1 - figures["accuracy"],
            "diversity_explained": document["fidelity"]["diversity_explained"] if hydra else None,
            "parameters": cost[model]["parameters"],
            "parameters_of_teachers": cost["ensemble"]["parameters"] if hydra else None,
            "train_error": self._train_error(run) if plain else None,
            "seconds": round(sum(float(row["seconds"]) for name in folders for row in self._epochs(name))),
            "command": _told("train", "--name", run.name, *run.settings, *run.flags),
        }
        _append(self.results, COLUMNS, [line], "arm", "seed")
        print({key: value for key, value in line.items() if key != "command"}, flush=True)

    def _train_error(self, run: Planned) -> float | None:
        """The error on the training rows, without augmentation."""
        printed = self._edistill("evaluate", f"runs/{run.name}", "--split", "train", "--json", *run.settings)
        return None if printed is None else 1 - float(json.loads(printed)["models"][STUDENT]["accuracy"])

    def _add_gradients(self, arm: str, folder: str) -> None:
        lines = [
            {"arm": arm, "seed": self.seed, "epoch": row["epoch"], **{name: row[name] for name in SPLIT}}
            for row in self._epochs(folder)
        ]
        _append(self.gradients, ("arm", "seed", "epoch", *SPLIT), lines, "arm", "seed", "epoch")

    def _epochs(self, folder: str) -> list[dict[str, str]]:
        return _lines(self.work / "runs" / folder / "summary.csv")

    def _edistill(self, *arguments: str) -> str | None:
        """Run `edistill` in the work folder; returns its stdout, or None if it refuses with a message."""
        print("$", _told(*arguments), flush=True)
        command = [sys.executable, "-m", "ensemble_distill", *arguments]
        done = subprocess.run(command, cwd=self.work, stdout=subprocess.PIPE, text=True)
        if done.returncode == 2:  # for example a loss that is not finite; the other arms continue
            return None
        done.check_returncode()
        return done.stdout


def _told(*arguments: str) -> str:
    return " ".join(("edistill", *(f"'{a}'" if any(c in a for c in '[]{} "') else a for a in arguments)))


def _lines(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(table: Path, columns: Sequence[str], lines: Sequence[Line], *key: str) -> None:
    """Add lines to a table, in place of those with the same key; the file is complete at any moment."""
    shown = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines]
    own = {tuple(str(line[name]) for name in key) for line in shown}
    kept = [line for line in _lines(table) if tuple(line[name] for name in key) not in own]
    table.parent.mkdir(parents=True, exist_ok=True)
    part = table.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *shown])
    part.replace(table)


if __name__ == "__main__":
    sys.exit(main())
