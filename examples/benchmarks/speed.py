"""Is the cache worth it? Four ratios, each from alternating runs in this process.

    python examples/benchmarks/speed.py ../shared

1. A training epoch from the cache ÷ an epoch of plain supervised training of the same body on the same rows.
2. A training epoch from the cache ÷ an epoch of online distillation, which runs all ten members at each step.
3. The same epoch with --channels-last ÷ without.
4. The caching pass ÷ the bare sum of the members' forward passes on tensors that are already loaded.

The machine should have nothing else to do.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import arguments, copy_teachers, unpack_cifar10  # noqa: E402

from ensemble_distill.cache.reader import Cache  # noqa: E402
from ensemble_distill.caching.passes import cache_outputs  # noqa: E402
from ensemble_distill.data.plan import SplitPlan  # noqa: E402
from ensemble_distill.methods import open_method  # noqa: E402
from ensemble_distill.predictive.categorical import Categorical, CategoricalFamily  # noqa: E402
from ensemble_distill.runtime.factories import load_factory  # noqa: E402
from ensemble_distill.runtime.progress import Silent  # noqa: E402
from ensemble_distill.settings import Settings, settings_from  # noqa: E402
from ensemble_distill.students.heads import Heads  # noqa: E402
from ensemble_distill.students.student import Student  # noqa: E402
from ensemble_distill.teachers.teacher import Teacher  # noqa: E402
from ensemble_distill.training.checkpoint import Place  # noqa: E402
from ensemble_distill.training.feed import Feed, Pooling  # noqa: E402
from ensemble_distill.training.loop import Setup, Training  # noqa: E402
from ensemble_distill.training.order import Order, Steps  # noqa: E402
from ensemble_distill.training.rows import CachedRows, CachedSplit, TeacherOutputs, collate  # noqa: E402
from ensemble_distill.workspace import Workspace  # noqa: E402

ROWS = 2048
REPEATS = 3
BATCH = 128
CPU = torch.device("cpu")


def main() -> None:
    given = arguments(__doc__ or "", HERE)
    work: Path = given.work
    unpack_cifar10(given.shared, work)
    copy_teachers(given.shared / "teachers" / "cifar10-resnet8", work)
    np.save(work / "rows.npy", np.arange(0, 50_000, 50_000 // ROWS)[:ROWS])
    torch.set_num_threads(2)
    settings = settings_of(work)
    plan = Workspace(settings).split("train")
    teachers = Workspace(settings).ensemble(plan.source.classes)
    modules = [teacher.build() for teacher in teachers]
    make_member = load_factory(f"{work / 'teachers' / 'model.py'}:make_teacher", "the members' architecture")
    for row in range(len(plan.source)):
        plan.source.item(row)  # decoded once, before anything is timed
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache_pass(cache, plan, teachers)
        split = CachedSplit(plan.source, plan.view, plan.seed, Cache(cache).open("train", plan.count))
        rows = CachedRows([split], teachers[0].member.preprocessing)
        cached, laid_out, supervised, online = medians(
            lambda: cached_epoch(make_member, split, rows, settings),
            lambda: cached_epoch(make_member, split, rows, settings, channels_last=True),
            lambda: supervised_epoch(make_member, rows, settings),
            lambda: online_epoch(make_member, rows, settings, modules),
        )
        print(f"{ROWS:,} rows of CIFAR-10, {len(modules)} ResNet-8 members, batch {BATCH}, medians of {REPEATS}")
        tell("epoch from the cache ÷ supervised epoch", cached, supervised)
        tell("epoch from the cache ÷ online distillation", cached, online)
        tell("epoch from the cache, --channels-last ÷ without", laid_out, cached)
        loaded = torch.from_numpy(np.stack([rows[row, 0].x for row in range(ROWS)]))
        whole, bare = medians(
            lambda: cache_pass(None, plan, teachers), lambda: bare_forwards(modules, loaded, plan.count)
        )
        tell("caching pass ÷ the members' bare forwards", whole, bare)


def tell(what: str, a: float, b: float) -> None:
    print(f"{what:<48}{a / b:5.2f}   ({a:.1f} s / {b:.1f} s)", flush=True)


def settings_of(work: Path) -> Settings:
    return settings_from(
        {
            "teachers": {
                "path": "teachers",
                "model": "teachers/model.py:make_teacher",
                "preprocessing": {"size": [32, 32], "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]},
            },
            "data": {"train": {"source": "data/cifar10/train", "rows": "rows.npy"}},
            "views": {"transform": "crop-flip", "count": 2},
            "train": {"epochs": 1, "batch-size": BATCH, "device": "cpu"},
        },
        root=work,
    )


def medians(*runs: Callable[[], None]) -> list[float]:
    """Median seconds of each, the runs taken in turn so that a drifting machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(REPEATS + 1):
        for run, taken in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            if repeat:  # the first round warms up
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def student(make_member: Callable[[], nn.Module], heads: int) -> Student:
    """A member's architecture without its classifier, under fresh linear heads."""
    torch.manual_seed(0)
    body = make_member()
    body.head = nn.Identity()
    return Student(body, Heads(heads, 64, (), 10), CategoricalFamily())


def cached_epoch(
    make_member: Callable[[], nn.Module],
    split: CachedSplit,
    rows: CachedRows,
    settings: Settings,
    channels_last: bool = False,
) -> None:
    """What `edistill train --epochs 1` does once everything is open: both stages, checkpoint and log included."""
    method = open_method("hydra")
    with tempfile.TemporaryDirectory() as folder:
        Training(
            Setup(
                student=student(make_member, 1),
                stages=method.stages(method.Options(), len(split.records.members)),
                feed=Feed(
                    rows=rows,
                    outputs=TeacherOutputs([split]),
                    order=Order(len(rows), split.records.views, BATCH, seed=0),
                    pooling=Pooling(CategoricalFamily()),
                    device=CPU,
                ),
                settings=settings.train.model_copy(update={"channels_last": channels_last}),
                place=Place(Path(folder)),
                progress=Silent(),
            )
        ).run()


def loader(rows: CachedRows) -> DataLoader:
    order = Order(len(rows), 2, BATCH, seed=0)
    return DataLoader(rows, batch_sampler=Steps(order, 0, order.steps_per_epoch), collate_fn=collate)


def supervised_epoch(make_member: Callable[[], nn.Module], rows: CachedRows, settings: Settings) -> None:
    """Plain PyTorch: the same body and inputs, one head, cross-entropy."""
    model = student(make_member, 1)
    optimizer = create_optimizer_v2(model, opt=settings.train.opt, lr=settings.train.lr)
    for batch in loader(rows):
        loss = nn.functional.cross_entropy(model(batch.x)[:, 0], batch.own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def online_epoch(
    make_member: Callable[[], nn.Module], rows: CachedRows, settings: Settings, modules: list[nn.Module]
) -> None:
    """The members run at each step on the step's inputs; the same loss against the same ten heads."""
    model = student(make_member, len(modules))
    optimizer = create_optimizer_v2(model, opt=settings.train.opt, lr=settings.train.lr)
    for batch in loader(rows):
        with torch.no_grad():
            teacher = Categorical(torch.stack([module(batch.x) for module in modules], 1))
        loss = teacher.kl(Categorical(model(batch.x))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def cache_pass(folder: Path | None, plan: SplitPlan, teachers: list[Teacher]) -> None:
    """A whole pass, its files synced to disk."""
    with tempfile.TemporaryDirectory() as scratch:
        cache_outputs(
            folder or Path(scratch) / "cache",
            "classification",
            {"train": plan},
            teachers,
            dtype="float16",
            batch_size=256,
            device=CPU,
            workers=0,
            progress=Silent(),
        )


@torch.inference_mode()
def bare_forwards(modules: list[nn.Module], loaded: torch.Tensor, views: int) -> None:
    for _ in range(views):
        for x in loaded.split(256):
            for module in modules:
                module(x)


if __name__ == "__main__":
    main()
