"""Is it faster to run members of one architecture in one batch? python examples/benchmarks/together.py

Time one by one ÷ time together for 256 rows, run, checked and encoded as in a caching pass, with one thread and with
two; medians of alternating runs. A caching pass runs larger members and convolutions one by one; they are included here
to show why. Leave the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from timing import medians, seconds_of  # noqa: E402

from ensemble_distill.cache.formats import Format  # noqa: E402
from ensemble_distill.facts import Member  # noqa: E402
from ensemble_distill.tasks.classification import Classification  # noqa: E402
from ensemble_distill.teachers.network import Network  # noqa: E402
from ensemble_distill.teachers.together import Together  # noqa: E402

ROWS, CLASSES, REPEATS = 256, 10, 40
Shape = tuple[int, ...]
MEMBERS: tuple[tuple[int, Shape], ...] = (
    (16, (8, 16)),
    (8, (64, 64, 64)),
    (16, (64, 64, 64)),
    (16, (64, 256, 256)),
    (16, (784, 200, 200)),
    (16, (1024, 1024)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    threads: list[int] = parser.parse_args().threads
    print("| members | " + " | ".join(f"{count} threads: one by one ÷ together (ms)" for count in threads) + " |")
    print("|---|" + "---:|" * len(threads))
    for count, sizes in MEMBERS:
        told = [compared([mlp(sizes) for _ in range(count)], torch.randn(ROWS, sizes[0]), each) for each in threads]
        print(f"| {count} of {'-'.join(map(str, (*sizes, CLASSES)))} | {' | '.join(told)} |", flush=True)
    told = [compared([convolutions() for _ in range(16)], torch.randn(ROWS, 1, 28, 28), each) for each in threads]
    print(f"| 16 of two convolutions, 8 and 16 channels, 28 × 28 pixels | {' | '.join(told)} |")


def mlp(sizes: Shape) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip(sizes, (*sizes[1:], CLASSES), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutions() -> nn.Module:
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def compared(modules: list[nn.Module], x: torch.Tensor, threads: int) -> str:
    torch.set_num_threads(threads)
    members = [
        Network(Classification, Member(f"member-{at}", "0" * 64), module.eval()) for at, module in enumerate(modules)
    ]
    form, batch, rows = Format("dense", (CLASSES,), "float16"), Together(members), range(len(x))

    def alone() -> None:
        for member in members:
            form.encode(member.answers("train", rows, x))

    def at_once() -> None:
        answers = batch.answers("train", rows, x)
        assert answers is not None
        form.encode(answers.reshape(-1, CLASSES))

    one, all_of_them = medians(REPEATS, partial(seconds_of, alone), partial(seconds_of, at_once), warm=3)
    return f"{one / all_of_them:.2f} ({1000 * one:.1f} / {1000 * all_of_them:.1f})"


if __name__ == "__main__":
    main()
