"""scikit-learn's 8×8 digits as splits, and an ensemble of small networks trained on them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch import nn

from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.keys import permutation
from ensemble_distill.runtime.progress import Progress

MEMBERS = 8
SPLITS = {"train": 1000, "validation": 200, "calibration": 197, "test": 400}  # of 1,797 rows


def make_ensemble(folder: Path, progress: Progress) -> None:
    """Write `data/` and `teachers/` into a folder that has a `model.py`."""
    splits = _write_data(folder / "data")
    make_teacher = load_factory(f"{folder / 'model.py'}:make_teacher", "teachers.model")
    progress.start("training the members", total=MEMBERS, unit="members")
    with _apart():
        for index in range(MEMBERS):
            member = _train_member(make_teacher, *splits["train"], seed=index)
            write_whole(folder / "teachers" / f"member-{index:02d}.safetensors", save(member.state_dict()))
            progress.advance()
    progress.finish()


def _write_data(folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    shuffled = permutation(len(pixels), "quickstart")
    splits, start = {}, 0
    for name, count in SPLITS.items():
        rows = shuffled[start : start + count]
        start += count
        splits[name] = (pixels[rows], digits.target[rows].astype(np.int64))
        write_whole(folder / f"{name}.npz", _npz(*splits[name]))
    x, y = splits["test"]
    write_whole(folder / "quarter-turned.npz", _npz(np.rot90(x, axes=(1, 2)).copy(), y))
    return splits


def _npz(x: NDArray[np.uint8], y: NDArray[np.int64]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=x, y=y)
    return file.getvalue()


@contextmanager
def _apart() -> Iterator[None]:
    """Run on one thread and keep the caller's random state.

    With networks this small, a second thread only waits: on a busy machine, for minutes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _train_member(make_teacher: object, x: NDArray[np.uint8], y: NDArray[np.int64], seed: int) -> nn.Module:
    """Train a member for about a second, by ordinary supervised training on a bootstrap sample of the rows.

    Bagging (Breiman 1996) makes members that gain much from each other. Members that differ only in their seeds gain so
    little here that two of them do as well as all.
    """
    assert callable(make_teacher)
    torch.manual_seed(seed)
    module: nn.Module = make_teacher()
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=1e-3)
    inputs = (torch.from_numpy(x).float()[:, None] / 255 - 0.5) / 0.5
    labels = torch.from_numpy(y)
    own = torch.randint(len(inputs), (len(inputs),))
    inputs, labels = inputs[own], labels[own]
    for _ in range(25):
        for rows in torch.split(torch.randperm(len(inputs)), 64):
            loss = nn.functional.cross_entropy(module(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return module.eval()
