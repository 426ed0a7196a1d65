"""The student of run.py, a longer trained and a wider one, several seeds: python examples/cifar10_resnet8/seeds.py
../shared

`--students w16-long --seeds 0` trains some of them. Names that end in -spread are students of those names, trained on
by spread.py; they need the run in the same folder. Each finished one is a line of seeds.csv beside this file, and is
then skipped, so that the study can continue anywhere. Bodies are compiled (torch.compile), which needs a C++ compiler:
on one core that multiplies bfloat16, an epoch of w16 then takes 43 s instead of 71.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from common import add_line, arguments, edistill, lines_of, worth_of  # noqa: E402
from run import prepare  # noqa: E402

TABLE = HERE / "seeds.csv"
SEEDS = ("0", "1", "2")
STUDENTS = {  # flags of train, and of all commands
    "w16": ("--epochs 32", ""),
    "w16-long": ("--epochs 64", "--set views.count=12"),
    "w24": ("--epochs 32 --set student.kwargs={width=24,tail=512}", ""),
}
SPREAD = "-spread"  # ends the names of students that are trained anew from those without it; see spread.py
SPREADING = (
    "--method spread.py:Spread --set student.model=spread.py:make_spreading --set method.run=runs/{of} --epochs 6 "
    "--opt adamw --lr 1e-3 --weight-decay 0.05 --warmup-epochs 0 --batch-size 256 --set train.model-ema=false"
)
STRANGERS = ("digits", "mnist")
UNSEEN = "--set data.ood.mnist=mnist.npz"  # a set that no choice has seen


def main() -> None:
    given = arguments(
        __doc__ or "", HERE, seeds=SEEDS, students=[name + end for name in STUDENTS for end in ("", SPREAD)]
    )
    for student in given.students:
        for seed in given.seeds:
            if (student, seed) not in {(line["student"], line["seed"]) for line in lines_of(TABLE)}:
                prepare(given.shared, given.work)
                write_mnist(given.shared, given.work)
                add_line(TABLE, {"student": student, "seed": seed, **trained(given.work, student, seed)})
    for student in given.students:
        print_table(student, [line for line in lines_of(TABLE) if line["student"] == student])


def write_mnist(shared: Path, work: Path) -> None:
    """Write `mnist.npz`: 2,000 test rows of MNIST as 32×32 gray pictures."""
    with np.load(shared / "data" / "mnist.npz") as mnist:
        pictures = mnist["test_x"][:2000]
    enlarged = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BILINEAR)) for p in pictures]
    np.savez_compressed(work / "mnist.npz", x=np.repeat(np.stack(enlarged)[..., None], 3, axis=-1))


def trained(work: Path, student: str, seed: str) -> dict[str, Any]:
    """The figures of `evaluate` on the test rows, the seconds of training, and the training command."""
    name, (flags, more) = f"{student}-s{seed}", STUDENTS[student.removesuffix(SPREAD)]
    everywhere = f"{UNSEEN} {more}".strip()
    if student.endswith(SPREAD):
        how = SPREADING.format(of=name.replace(SPREAD, ""))
    else:
        how = f"--method hydra --torchcompile inductor {flags}"
    command = f"train --name {name} --seed {seed} {how} {everywhere}"
    edistill(work, f"cache-logits {everywhere}")
    started = time.monotonic()
    edistill(work, command)
    seconds = round(time.monotonic() - started)
    evaluate = [sys.executable, "-m", "ensemble_distill", "evaluate", name, "--json", *everywhere.split()]
    document = json.loads(subprocess.run(evaluate, cwd=work, check=True, stdout=subprocess.PIPE).stdout)
    return {**figures(document), "seconds": seconds, "command": f"edistill {command}"}


def figures(document: dict[str, Any]) -> dict[str, Any]:
    models, fidelity = document["models"], document["fidelity"]
    keys = ("diversity_explained", "model_uncertainty_l1", "model_uncertainty_ratio", "mean_kl", "gap_closed")
    return {
        "nll_ratio": models["student"]["nll"] / models["ensemble"]["nll"],
        **{f"{model}_{key}": models[model][key] for model in ("ensemble", "student") for key in ("accuracy", "nll")},
        **{key: fidelity[key] for key in keys},
        **{
            f"auroc_{name}_{model}": document["ood"][name][model]["model_uncertainty"]
            for name in STRANGERS
            for model in ("ensemble", "student")
        },
        **worth_of(document),
    }


def print_table(student: str, lines: list[dict[str, str]]) -> None:
    """Print means ± standard deviations over seeds, a figure per line."""
    print(f"\n{student}, {len(lines)} of {len(SEEDS)} seeds")
    for key in lines[0] if lines else ():
        if key not in ("student", "seed", "seconds", "command"):
            values = np.array([float(line[key]) for line in lines])
            print(f"{key:28}{values.mean():10.4f} ± {values.std(ddof=1) if len(values) > 1 else np.nan:.4f}")


if __name__ == "__main__":
    main()
