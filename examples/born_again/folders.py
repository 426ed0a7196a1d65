"""The working folder of the study, which two processes may prepare at once: everything appears whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from arms import Study
from model import densenet_bc, wide_resnet
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
FACTORIES: Mapping[str, Callable[..., nn.Module]] = {"wide_resnet": wide_resnet, "densenet_bc": densenet_bc}


def prepare(study: Study, shared: Path, work: Path) -> None:
    """Write data, settings, networks and an untrained member of each family."""
    work.mkdir(parents=True, exist_ok=True)
    for file in (HERE / study.folder / "edistill.toml", HERE / "model.py"):
        part = _part(work / file.name)
        shutil.copy(file, part)
        part.replace(work / file.name)
    if not (work / "data").exists():
        part = _part(work / "data")
        part.mkdir()
        _write_data(study, shared / "data" / "cifar10.zip", part)
        _take_place(part, work / "data")
    for name, family in study.families().items():
        if not (work / f"untrained-{name}").exists():
            part = _part(work / f"untrained-{name}")
            part.mkdir()
            torch.manual_seed(0)
            network = FACTORIES[family.factory](**family.kwargs, classes=len(study.classes))
            state = {key: value.contiguous() for key, value in network.state_dict().items()}
            save_file(state, part / "untrained.safetensors")
            _take_place(part, work / f"untrained-{name}")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}-{os.getpid()}")


def _take_place(part: Path, folder: Path) -> None:
    """Move `part` to its place, unless another process was first, whose output is the same."""
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(part)


def _write_data(study: Study, archive: Path, folder: Path) -> None:
    """Write 16×16 pictures: some of each class for training and validation, and all test pictures."""
    random = np.random.Generator(np.random.PCG64(0))
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[2] for name in names})
        rows: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
        for index, label in enumerate(classes[at] for at in study.classes):
            of = [name for name in names if f"/train/{label}/" in name]
            order = random.permutation(len(of))
            rows["train"] += [(of[at], index) for at in order[: study.train]]
            rows["validation"] += [(of[at], index) for at in order[study.train :][: study.validation]]
            rows["test"] += [(name, index) for name in names if f"/test/{label}/" in name]
        for split, chosen in rows.items():
            x = _small(opened.read(name) for name, _ in chosen)
            np.savez_compressed(folder / f"{split}.npz", x=x, y=np.array([index for _, index in chosen]))


def _small(pictures: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").resize((16, 16), Image.Resampling.BOX))
            for picture in pictures
        ]
    )
