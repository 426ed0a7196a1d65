"""torchvision's data sets by name, from files written here; nothing is downloaded."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import refused

from ensemble_distill.data import open_source
from ensemble_distill.data.torch_dataset import BY_TRAIN, PARTS
from ensemble_distill.settings import settings_from
from ensemble_distill.settings.sections import DataEntry
from ensemble_distill.workspace import Workspace

RNG = np.random.default_rng(0)
GRAY = {"train": RNG.integers(0, 256, (9, 28, 28), dtype=np.uint8), "t10k": np.zeros((4, 28, 28), np.uint8)}
LABELS = {"train": RNG.integers(0, 10, 9, dtype=np.uint8), "t10k": np.arange(4, dtype=np.uint8)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """MNIST as torchvision keeps it: arrays in the format idx."""
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for part, x in GRAY.items():
        header = struct.pack(">HBB3I", 0, 8, 3, *x.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + x.tobytes())
        labels = struct.pack(">HBBI", 0, 8, 1, len(x)) + LABELS[part].tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path


def entry(place: Path, source: str = "torch/MNIST", **more: Any) -> DataEntry:
    said = {"source": source, "root": "data", **more}
    return DataEntry.model_validate(said, context={"root": place})


def test_parts_go_by_the_splits_names(root: Path) -> None:
    train = open_source(entry(root), name="train")
    assert (train.kind, len(train), train.classes[3]) == ("pixels", 9, "3 - three")  # type: ignore[index]
    assert_array_equal(np.stack([train.item(row).x for row in range(9)])[..., 0], GRAY["train"])
    assert_array_equal(train.labels, LABELS["train"])
    for name in ("test", "ood/mnist"):
        assert len(open_source(entry(root), name=name)) == 4
    assert len(open_source(entry(root, split="test"), name="train")) == 4
    assert len(open_source(entry(root, source="torch/mnist"), name="all")) == 9
    again = pickle.loads(pickle.dumps(train))
    assert_array_equal(again.item(2).x, train.item(2).x)
    assert again.digest == train.digest


def test_in_settings_they_are_no_path(root: Path) -> None:
    data = {"train": {"source": "torch/MNIST", "root": "data"}, "test": {"source": "torch/MNIST", "root": "data"}}
    workspace = Workspace(settings_from({"data": data}, root))
    assert {name: len(plan.source) for name, plan in workspace.splits().items()} == {"train": 9, "test": 4}
    (root / "torch/MNIST/cat").mkdir(parents=True)
    Image.fromarray(GRAY["train"][0]).save(root / "torch/MNIST/cat/a.png")
    workspace = Workspace(settings_from({"data": {"train": "torch/MNIST"}}, root))
    assert workspace.source("train").classes == ("cat",), "a folder that is there is what is meant"


def test_parts_of_another_kind(tmp_path: Path) -> None:
    """DTD: pictures in folders, and lists of them."""
    base = tmp_path / "data/dtd/dtd"
    for row, kind in enumerate(("banded", "dotted")):
        (base / "images" / kind).mkdir(parents=True)
        Image.fromarray(GRAY["train"][row]).save(base / f"images/{kind}/a.jpg")
    (base / "labels").mkdir()
    for name, kind in (("train", "banded"), ("val", "dotted"), ("test", "dotted")):
        (base / f"labels/{name}1.txt").write_text(f"{kind}/a.jpg\n")
    found = open_source(entry(tmp_path, source="torch/dtd"), name="validation")
    assert (len(found), found.classes, found.labels.tolist()) == (1, ("dotted",), [0])  # type: ignore[union-attr]


def test_every_known_one_is_torchvisions() -> None:
    for name, parts in PARTS.items():
        made = getattr(torchvision.datasets, name)
        assert ("train" in made.__init__.__annotations__) == (name in BY_TRAIN), name
        assert name in BY_TRAIN or "split" in made.__init__.__annotations__, name
        assert parts


@pytest.mark.parametrize(
    ("source", "more", "name", "words"),
    [
        ("torch/MNIST", {}, "validation", ("train, test", "called validation", 'split = "train"')),
        ("torch/MNIST", {}, "", ("train, test", 'split = "train"')),
        ("torch/MNIST", {"split": "val"}, "train", ("train, test", "'val'")),
        ("torch/MNIST", {"root": None}, "train", ("torch/MNIST", "root =")),
        ("torch/MNIST", {"root": "nowhere"}, "train", ("nowhere", "no such folder")),
        ("torch/MNST", {}, "train", ("torch/MNST", "Did you mean torch/MNIST?")),
        ("torch/ImageNet", {}, "train", ("torch/ImageNet", "file.py:factory")),
        ("torch/KMNIST", {}, "train", ("not whole in", "download=True", "train=True", "fix root")),
        ("torch/SVHN", {}, "test", ("not whole in", "split='test'")),
        ("torch/CIFAR10", {"x": "a"}, "train", ("x is 'a'",)),
    ],
)
def test_what_is_not_there_is_refused(
    root: Path, source: str, more: dict[str, Any], name: str, words: tuple[str, ...]
) -> None:
    with refused(*words):
        open_source(entry(root, source=source, **more), name=name)


def test_files_that_are_not_the_published_ones_are_not_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{at}" for at in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({"data": 1}))
    with refused("torch/CIFAR10 is not whole", "corrupted"):
        open_source(entry(tmp_path, source="torch/CIFAR10"), name="train")


def test_damaged_files_are_refused(root: Path) -> None:
    (root / "data/MNIST/raw/train-images-idx3-ubyte").write_bytes(b"\0" * 40)
    with refused("torch/MNIST is not whole"):
        open_source(entry(root), name="train")


@pytest.mark.parametrize("source", ["a.npz", "photos"])
def test_keys_of_theirs_elsewhere(tmp_path: Path, source: str) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)))
    (tmp_path / "photos").mkdir()
    Image.fromarray(GRAY["train"][0]).save(tmp_path / "photos/a.png")
    with refused(source, "split is 'test'", "torch/NAME"):
        given = {"source": source, "split": "test"}
        open_source(DataEntry.model_validate(given, context={"root": tmp_path}))
