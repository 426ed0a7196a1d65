"""A folder small enough to be cached and trained on in a tenth of a second, so that it can be broken everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.caching import answers
from ensemble_distill.caching.seen import Seen
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import files
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.workflows.cache_logits import cache_logits

SIDE, CLASSES = 6, 3
ROWS = {"train": 40, "validation": 12, "test": 10, "ood/noise": 7}
MODEL = """
import json
import os
import time

from torch import nn

SLEEP = float(os.environ.get("TINY_SLEEP", "0"))


class Gray(nn.Module):
    def forward(self, x):
        if SLEEP:
            time.sleep(SLEEP)
        return x.mean(1)


def make_teacher(classes=3):
    return nn.Sequential(Gray(), nn.Flatten(), nn.Linear(36, classes))


def make_body(width=12, dropout=0.2):
    return nn.Sequential(
        Gray(), nn.Flatten(), nn.Linear(36, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)
    )
"""
TOML = """
[teachers]
path = "teachers"
model = "model.py:make_teacher"
preprocessing = { size = [6, 6], mean = [0.5], std = [0.5] }
[views]
transform = "crop-flip+mixup"
count = 2
[student]
model = "model.py:make_body"
[cache]
batch-size = 4
[train]
epochs = 3
batch-size = 8
lr = 0.01
device = "cpu"
workers = 0
[data]
"""


def class_images() -> Array:
    """What the images of each class are noisy copies of: (CLASSES, SIDE, SIDE), floats from 0 to 255."""
    return np.random.default_rng(7).uniform(60, 195, (CLASSES, SIDE, SIDE))


def examples(rows: int, seed: int) -> tuple[Array, Array]:
    """uint8 images (rows, SIDE, SIDE) and their classes, in turn."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % CLASSES
    x = class_images()[y] + rng.normal(scale=20, size=(rows, SIDE, SIDE))
    return x.clip(0, 255).astype(np.uint8), y.astype(np.int64)


def save_data(folder: Path, split: str, rows: int, **arrays: Array) -> None:
    """Write a split; `arrays` replace x and y or add to them."""
    seed = sum(map(ord, split))
    x, y = examples(rows, seed)
    file = folder / "data" / f"{split}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **({"x": x, "y": y} | arrays))


def member_state(seed: int, classes: int = CLASSES) -> dict[str, Tensor]:
    """A linear classifier that matches images with those of the classes, in its own noisy way."""
    rng = np.random.default_rng(100 + seed)
    images = (class_images() / 255 - 0.5) / 0.5
    images = np.concatenate([images - images.mean(0), np.zeros((classes, SIDE, SIDE))])[:classes]
    weight = images.reshape(classes, -1) + rng.normal(scale=0.4, size=(classes, SIDE * SIDE))
    return {
        "2.weight": torch.tensor(weight, dtype=torch.float32),
        "2.bias": torch.tensor(rng.normal(scale=0.3, size=classes), dtype=torch.float32),
    }


def save_member(folder: Path, index: int, seed: int | None = None) -> Path:
    file = folder / "teachers" / f"member-{index}.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file(member_state(index if seed is None else seed), file)
    return file


def put_members(folder: Path, source: str, modules: Iterable[nn.Module]) -> None:
    """Members of another architecture: the text of their model.py, and the modules it makes."""
    (folder / "model.py").write_text(source)
    (folder / "teachers").mkdir()
    for index, module in enumerate(modules):
        save_file(module.state_dict(), folder / "teachers" / f"member-{index}.safetensors")


def make_folder(folder: Path, members: int = 3, rows: Mapping[str, int] = ROWS) -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    keys = {split: split.replace("/", ".") for split in rows}
    (folder / "edistill.toml").write_text(TOML + "".join(f'{keys[s]} = "data/{s}.npz"\n' for s in rows))
    for split, count in rows.items():
        save_data(folder, split, count)
    for index in range(members):
        save_member(folder, index)
    return folder


def with_cache(folder: Path) -> Path:
    """The same folder, once its members are cached as its settings ask."""
    cache_logits(settings(folder))
    return folder


def settings(folder: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    return load_settings(folder / "edistill.toml", overrides)


def contents(folder: Path, without: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file by its relative name; not the lock, nor files of the names in `without`. What killed writers left in a
    folder is numbered by its content, whatever names they drew."""
    every = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", *without))
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in every if not files.is_temporary(path)}
    left = sorted((path.parent, path.read_bytes()) for path in every if files.is_temporary(path))
    for number, (place, content) in enumerate(left):
        found[(place / f"{number}.part").relative_to(folder).as_posix()] = content
    return found


def unseal(run: Path) -> Path:
    """Make a run one of version 0.1.0, without digests and answers, so that a test can edit it; returns its config."""
    config, weights = run / "config.json", run / "student.safetensors"
    record = json.loads(config.read_text())
    for later in ("sha256", "answers"):
        record.pop(later, None)
    config.write_text(json.dumps({**record, "edistill": "0.1.0"}))
    weights.write_bytes(save(load(weights.read_bytes())))
    return config


@contextmanager
def refused(*said: str) -> Iterator[None]:
    """Expects an EdistillError whose text holds all of `said`."""
    with pytest.raises(EdistillError) as caught:
        yield
    for part in said:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


@contextmanager
def refused_and_kept(folder: Path, *said: str) -> Iterator[None]:
    """Expects an EdistillError that says all of this, and that no file has changed."""
    before = contents(folder)
    with refused(*said):
        yield
    assert contents(folder) == before


class Killed(BaseException):
    """What a crash raises: nothing may catch it."""


@contextmanager
def killed_at(point: int, monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[list[bool]]:
    """Crash at the `point`-th crash point, counted from 0; yields a list that is no longer empty once it did.

    What was not synced is torn afterwards, as a power cut may: unfinished files lose their second half.
    """
    passed = 0
    happened: list[bool] = []

    def count(step: str, path: Path) -> None:
        nonlocal passed
        if passed == point:
            happened.append(True)
            raise Killed(step, path)
        passed += 1

    with monkeypatch.context() as patch:
        patch.setattr(files, "crash_point", count)
        try:
            yield happened
        except Killed:
            for part in root.rglob(f"*{files.TEMPORARY}"):
                part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])


class StopsAt(Silent):
    """Ctrl+C after so many training steps, of all trainings together: between two writes, with nothing saved since."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left, self.unit = step, ""

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.unit = unit

    def advance(self, count: int = 1, facts: object = None) -> None:
        self.left -= count if self.unit == "steps" else 0
        if self.left == 0:
            raise KeyboardInterrupt


def linear(seed: int) -> nn.Module:
    """What model.py makes of the weights of a member."""
    module = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    module.load_state_dict(member_state(seed))
    return module.eval()


def rows_asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the rows that each member is asked about, the probe aside."""
    rows: Counter[str] = Counter()
    make = answers.Answers.make

    def counted(self: Any, keys: Sequence[RecordKey], batch: range, seen: Seen) -> dict[RecordKey, NDArray[np.void]]:
        rows.update(key.member for key in keys for _ in batch)
        return make(self, keys, batch, seen)

    monkeypatch.setattr(answers.Answers, "make", counted)
    return rows


# --- processes --------------------------------------------------------------------------------------------------


def edistill(folder: Path, *command: str, settings: Mapping[str, Any], sleep: float) -> subprocess.Popen[bytes]:
    """The command in a process of its own, whose networks take `sleep` seconds a batch."""
    flags = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        [sys.executable, "-m", "ensemble_distill", *command, *flags],
        cwd=folder,
        env={**os.environ, "TINY_SLEEP": str(sleep)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Fails when the process ends first."""
    limit = time.monotonic() + 60
    while not true():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < limit, "nothing happened within a minute"
        time.sleep(0.02)
