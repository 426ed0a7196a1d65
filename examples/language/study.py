"""The born-again paper's table 6, small: teacher → BAN+L in language, with seeds and paired intervals.

python examples/language/study.py ../shared/data/text --work FOLDER runs one arm after another and appends each to
FOLDER/results.csv; started again, it continues where it was. --table prints the results so far.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import make
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ensemble_distill import cache_logits, evaluate, load_settings, load_student, train, train_chain

Sets = dict[str, object]
COLUMNS = ("arm", "seed", "validation", "test", "seconds")
# Arms of one teacher, each with its seed or with none, whose networks are like the teacher's; and those of four
# teachers. The latter, and the arms compared with them, follow the recipe of the folder's edistill.toml: AdamW. With
# the paper's rates, separate heads learn less (a Hydra's validation perplexity is 27.5, against 24.8 with AdamW).
LIKE_IT = {"student.heads": []}
OF_ONE = {
    "ban": {"train.method": "ban", "method.objective": "ban"} | LIKE_IT,
    "ban+l": {"train.method": "ban", "method.objective": "ban+l"} | LIKE_IT,
    "supervised": {"train.method": "supervised"} | LIKE_IT,
}
FOUR = {"teachers.path": "four", "output.cache": "cache-four"}  # the first four teachers, and their outputs
ADAMW = {f"{arm}, AdamW": sets for arm, sets in OF_ONE.items()}
OF_FOUR = {
    "hydra, AdamW": {"train.method": "hydra"} | FOUR,
    "hydra with labels, AdamW": {"train.method": "hydra", "method.label-weight": 1.0} | FOUR,
    "kd, AdamW": {"train.method": "kd"} | LIKE_IT | FOUR,
}
GIVEN = ("network", "rate", "share", "tokens", "width", "epochs")  # shared by all arms of a folder
PUBLISHED = {"LSTM": (71.87, 68.56), "CNN-LSTM": (80.05, 76.97)}  # Penn Treebank test perplexity, teacher and BAN+L


def for_students(recipe: make.Recipe, arm: str) -> Sets:
    """The recipe of a member as settings of a student, whose loss is a mean over the 35 steps instead of their sum."""
    rate = make.UNROLL * recipe.rate
    return {
        "train.opt": "sgd",
        "train.momentum": 0.0,
        "train.weight-decay": 0.0,
        # the loss is a sum of two terms, so half the rate moves as far as on their mean
        "train.lr": rate / 2 if arm in ("ban+l", "bane-2") else rate,
        "train.clip-grad": make.CLIP / make.UNROLL,
        "train.sched": "plateau",
        "train.decay-rate": recipe.fall,
        "train.patience-epochs": 0,
        "train.plateau-threshold": recipe.threshold,
        "train.batch-size": recipe.batch,
    }


def arms(seeds: int, few: int) -> Iterator[tuple[str, int]]:
    """The arms in the order in which they run: first those to compare, seed by seed, then those that need four
    teachers."""
    for seed in range(seeds):
        yield from ((arm, seed) for arm in ("teacher", "second", *OF_ONE))
    for arm in ("bane-2", *ADAMW, *OF_FOUR):
        yield from ((arm, seed) for seed in range(few))
    yield "ensemble", 0


def perplexity(work: Path, run: str) -> tuple[float, float]:
    """A student's perplexity on validation and test, as `evaluate` computes it: from a context of one window."""
    student = load_student(work / "runs" / run, trust=True)
    first, second = (
        in_windows(lambda ids: student(ids)[0, 0], make.read_ids(work, name)) for name in ("validation", "test")
    )
    return first, second


def evaluated(work: Path, run: str, model: str, sets: Sets) -> tuple[float, float]:
    """The perplexity on validation and test of another model that `evaluate` shows for a run."""
    settings = load_settings(work / "edistill.toml", sets)
    found = [evaluate(settings, run, split=split) for split in ("validation", "test")]
    first, second = (float(one.models[model]["perplexity"]) for one in found)
    return first, second


def taught(work: Path, arm: str, seed: int, recipe: make.Recipe, width: int) -> tuple[float, float]:
    """Train a member by the paper's recipe; returns its perplexities, computed as those of students.

    The arm "second" is the same with another seed.
    """
    member = member_of(work, arm, seed, recipe, width).eval()
    validation, test = (
        in_windows(lambda ids: member(ids)[0][0, -make.UNROLL :], make.read_ids(work, name))
        for name in ("validation", "test")
    )
    return validation, test


def member_of(work: Path, arm: str, seed: int, recipe: make.Recipe, width: int) -> nn.Module:
    """Train a member, and save it among the teachers or the others."""
    folder = work / ("teachers" if arm == "teacher" else "others")
    number = seed if arm == "teacher" else 1000 + seed
    member = make.new_member(work, width, number, recipe.network)
    make.train_member(member, work, number, recipe)
    folder.mkdir(exist_ok=True)
    make.save_member(member, folder / f"member-{seed}.safetensors")
    return member


def teach_missing(work: Path, arm: str, seed: int, recipe: make.Recipe, width: int) -> None:
    """Train the teachers that an arm needs and this machine lacks, and make the folder of four."""
    four = arm in OF_FOUR or arm == "ensemble"
    for number in range(4) if four else [seed]:
        path = work / "teachers" / f"member-{number}.safetensors"
        if not path.exists():
            member_of(work, "teacher", number, recipe, width)
        if four:
            (work / "four").mkdir(exist_ok=True)
            shutil.copy(path, work / "four")


@torch.no_grad()
def in_windows(said: Callable[[Tensor], Tensor], ids: NDArray[np.int64], size: int = make.UNROLL) -> float:
    """Perplexity as `evaluate` computes it: each window starts without a state at the beginning of the one before.

    Args:
        said: maps ids (1, 2 · size) to logits (size, K) of the last ones.
    """
    end, nll, rest = 1, 0.0, -len(ids) % size  # <eos> precedes the text; what follows it does not count
    stream = torch.from_numpy(np.concatenate([np.full(size + 1, end), ids, np.full(rest, end)]))
    for start in range(0, len(ids), size):
        chunk, count = stream[start : start + 2 * size + 1], min(size, len(ids) - start)
        nll += cross_entropy(said(chunk[None, :-1])[:count], chunk[size + 1 :][:count], reduction="sum").item()
    return math.exp(nll / len(ids))


def learned(work: Path, arm: str, seed: int, recipe: make.Recipe) -> tuple[float, float]:
    """Train a student from the cache, with another seed than its teacher's, whose weights it would otherwise start
    from."""
    sets: Sets = {"train.seed": 2000 + seed, "output.name": name_of(arm, seed)}
    if arm in OF_FOUR:
        sets |= OF_FOUR[arm]
        cache_logits(load_settings(work / "edistill.toml", sets))
    else:
        sets |= ADAMW[arm] if arm in ADAMW else OF_ONE["ban+l" if arm == "bane-2" else arm] | for_students(recipe, arm)
        if not arm.startswith("supervised"):
            sets["train.teacher"] = f"member-{seed}"
    if arm == "bane-2":
        train_chain(load_settings(work / "edistill.toml", sets | {"train.generations": 2}))
        return evaluated(work, name_of(arm, seed), "bane-2", {})
    train(load_settings(work / "edistill.toml", sets))
    return perplexity(work, name_of(arm, seed))


def name_of(arm: str, seed: int) -> str:
    return f"{arm.replace('+', '-').replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def of_four(work: Path, recipe: make.Recipe) -> tuple[float, float]:
    """The perplexities of the ensemble of four, which `evaluate` shows for any of its students."""
    arm = "kd, AdamW"
    if not (work / "runs" / name_of(arm, 0)).exists():  # trained on another machine
        learned(work, arm, 0, recipe)
    return evaluated(work, name_of(arm, 0), "ensemble", FOUR)


def run(work: Path, seeds: int, few: int, recipe: make.Recipe, width: int) -> None:
    results = work / "results.csv"
    if not results.exists():
        results.write_text(",".join(COLUMNS) + "\n")
    done = {(row["arm"], int(row["seed"])) for row in rows(results)}
    for arm, seed in arms(seeds, few):
        if (arm, seed) in done:
            continue
        if arm in ("teacher", "second"):
            started = time.monotonic()
            found = taught(work, arm, seed, recipe, width)
        else:
            teach_missing(work, arm, seed, recipe, width)
            cache_logits(load_settings(work / "edistill.toml"))  # does nothing if it is up to date
            started = time.monotonic()
            found = of_four(work, recipe) if arm == "ensemble" else learned(work, arm, seed, recipe)
        with results.open("a") as file:
            values = (arm, seed, *(f"{value:.3f}" for value in found), f"{time.monotonic() - started:.0f}")
            csv.writer(file, lineterminator="\n").writerow(values)
        print(*values, flush=True)


def refuse_others(work: Path, now: dict[str, float | str]) -> None:
    """Refuse to mix arms of other sizes in one folder."""
    path = work / "study.json"
    if path.exists() and (then := json.loads(path.read_text())) != now:
        raise SystemExit(f"{work} was begun with {then}, and now it is {now}. Give these again, or another --work.")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now))


def rows(results: Path) -> list[dict[str, str]]:
    with results.open(newline="") as file:
        return list(csv.DictReader(file))


def apart(one: dict[int, float], other: dict[int, float]) -> str:
    """The mean difference of logarithms over paired seeds, in percent, with its 95 % interval; from three pairs on."""
    pairs = [100 * (math.log(one[seed]) - math.log(other[seed])) for seed in one if seed in other]
    if len(pairs) < 3 or one is other:
        return "–"
    half = stats.t.ppf(0.975, len(pairs) - 1) * np.std(pairs, ddof=1) / math.sqrt(len(pairs))
    return f"{np.mean(pairs):+.1f} ± {half:.1f}"


def table(file: Path) -> None:
    """Print the test perplexity of each arm, and its differences from its own teacher and from training on labels
    alone."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows(file):
        found[row["arm"]][int(row["seed"])] = float(row["test"])
    print("| arm | seeds | test perplexity | from its teacher, % | from labels alone, % |\n|---|---:|---:|---:|---:|")
    for arm, by_seed in found.items():
        labels = "supervised, AdamW" if arm.endswith(", AdamW") else "supervised"
        told = [apart(by_seed, found.get(other, {})) for other in ("teacher", labels)]
        print(f"| {arm} | {len(by_seed)} | {np.mean(list(by_seed.values())):.2f} | {' | '.join(told)} |")
    for name, (teacher, student) in PUBLISHED.items():
        print(f"| the paper's {name}, BAN+L | 1 | {teacher} → {student} | {100 * math.log(student / teacher):+.1f} | |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Born again, in language.")
    parser.add_argument("texts", type=Path, nargs="?", help="holds wikitext2-valid.txt and wikitext2-test.txt")
    parser.add_argument("--work", type=Path, required=True, help="its folder; with --table a file of results, too")
    parser.add_argument("--seeds", type=int, default=5, help="of teacher, second and ban+l")
    parser.add_argument("--few", type=int, default=3, help="of the other arms")
    parser.add_argument("--network", choices=make.PAPER, default="lstm", help="of teachers and students")
    parser.add_argument("--rate", type=float, help="learning rate of the paper's recipe; default the paper's")
    parser.add_argument("--share", type=float, default=1.0, help="of the training text")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    given = parser.parse_args()
    if not given.table:
        given.rate = make.PAPER[given.network].rate if given.rate is None else given.rate
        recipe = replace(make.PAPER[given.network], rate=given.rate, epochs=given.epochs)
        refuse_others(given.work, {name: getattr(given, name) for name in GIVEN})
        if not (given.work / "edistill.toml").exists():
            if given.texts is None:
                parser.error(f"{given.work} has no texts yet. Name the folder that holds them.")
            make.make(given.work, given.texts, 0, given.share, given.tokens, given.width, recipe)
        run(given.work, given.seeds, given.few, recipe, given.width)
    table(given.work / "results.csv" if given.work.is_dir() else given.work)
