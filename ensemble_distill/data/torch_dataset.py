"""torchvision's data sets, from files on disk: `torch/CIFAR10`, as timm names them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill.data.entry import Entry
from ensemble_distill.data.factory import Factory
from ensemble_distill.data.source import Source
from ensemble_distill.data.walk import there
from ensemble_distill.errors import EdistillError, first_line, nearest
from ensemble_distill.tasks import Task, open_task

PREFIX = "torch/"
TWO = ("train", "test")
THREE = ("train", "val", "test")
# the data sets of pictures with one class each, and their parts by torchvision's names
PARTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"), TWO),
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "StanfordCars"), TWO),
    **dict.fromkeys(("DTD", "Flowers102", "RenderedSST2"), THREE),
    "Country211": ("train", "valid", "test"),
    "FGVCAircraft": ("train", "val", "trainval", "test"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "STL10": ("train", "test", "unlabeled"),
    "SVHN": ("train", "test", "extra"),
}
# those whose part is chosen by `train=True` or `train=False`; the others take `split="train"`
BY_TRAIN = frozenset({"CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"})
# the parts that may serve as a split of `[data]` if none has its name
ALIKE = {"validation": ("val", "valid"), "train": ("train", "trainval"), "all": ("train", "trainval")}


@dataclass(frozen=True)
class Which:
    """A part of one of torchvision's data sets.

    Attributes:
        name: the data set's name, as torchvision spells it.
        root: torchvision's `root`, the folder of its files.
        part: the part's name.
    """

    name: str
    root: str
    part: str

    def made(self) -> Any:
        """Torchvision's object; nothing is downloaded.

        Raises:
            EdistillError: its files are missing, or are not the published ones.
        """
        import torchvision.datasets

        part = {"train": self.part == "train"} if self.name in BY_TRAIN else {"split": self.part}
        try:
            return getattr(torchvision.datasets, self.name)(root=self.root, download=False, **part)
        except Exception as error:  # damaged files raise errors of any class
            unpacked = f"torchvision.datasets.{self.name}({self.root!r}, download=True, {_spelled(part)})"
            raise EdistillError(
                f"{PREFIX}{self.name} is not whole in {self.root}: {first_line(error)}. Nothing is downloaded here; "
                f'with a network, run python -c "import torchvision; {unpacked}", or fix root.'
            ) from error


class TorchDataset(Factory):
    """Rows of a part of one of torchvision's data sets."""

    def __init__(self, which: Which, task: type[Task]) -> None:
        self.which = which
        super().__init__(f"{PREFIX}{which.name}, {which.part}", task)

    def _made(self) -> Any:
        return _Rows(self.which.made())

    def __reduce__(self) -> tuple[Callable[..., TorchDataset], tuple[Which, str]]:  # type: ignore[override]
        return _again, (self.which, self.task.key)


class _Rows:
    """Torchvision's object, with the labels of all rows if it keeps them; otherwise rows are decoded to get them."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.classes = getattr(dataset, "classes", None)
        found = next((kept for name in ("targets", "labels", "_labels") if (kept := getattr(dataset, name, None))
                      is not None), None)  # fmt: skip
        if found is None and (samples := getattr(dataset, "_samples", None)) is not None:
            found = [label for _, label in samples]
        labels = None if found is None else np.asarray(found)
        self.unlabeled = labels is not None and bool((labels == -1).all())
        self.targets = None if self.unlabeled or labels is None or len(labels) != len(dataset) else labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        x, y = self.dataset[row]
        return x if self.unlabeled else (x, y)


def claims(source: str) -> bool:
    return re.fullmatch(rf"{PREFIX}\w+", source) is not None and not there(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """A part of the data set, by default the one named like the split.

    Raises:
        EdistillError: there is no such data set or part, nothing says where its files lie, or they are not there.
    """
    entry.refuse_arrays()
    name = _named(entry.source.removeprefix(PREFIX))
    if entry.root is None:
        raise EdistillError(
            f"{entry.source} lies in a folder that nothing names. Say it: "
            f'{{ source = "{PREFIX}{name}", root = "data" }}, the root that torchvision was given.'
        )
    if not Path(entry.root).is_dir():
        raise EdistillError(f"{entry.source} is to lie in {entry.root}, and there is no such folder. Fix root.")
    return TorchDataset(Which(name, entry.root, _part(entry, name)), task)


def _named(given: str) -> str:
    plain = {name.lower(): name for name in PARTS}
    name = plain.get(given.lower().replace("_", ""))
    if name is None:
        close = nearest(given.lower(), list(plain))
        hint = f"Did you mean {PREFIX}{plain[close[0]]}? " if close else ""
        raise EdistillError(
            f"There is no data set {PREFIX}{given} among those that are known: {', '.join(sorted(PARTS))}. {hint}Give "
            "another by file.py:factory, which returns torchvision's object."
        )
    return name


def _part(entry: Entry, name: str) -> str:
    parts = PARTS[name]
    if entry.split is not None:
        if entry.split not in parts:
            raise EdistillError(f"{PREFIX}{name} has the parts {', '.join(parts)}, and no {entry.split!r}. Fix split.")
        return entry.split
    called = "test" if entry.name.startswith("ood/") else entry.name
    found: str | None = next((part for part in (called, *ALIKE.get(called, ())) if part in parts), None)
    if found is None:
        raise EdistillError(
            f"{PREFIX}{name} has the parts {', '.join(parts)}, and none is called {called or 'so'}. Say which: "
            f'{{ source = "{PREFIX}{name}", root = ..., split = "{parts[0]}" }}, with rows = "rows.npy" for some '
            "of its rows; or let data.split split data.all."
        )
    return found


def _spelled(part: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in part.items())


def _again(which: Which, task: str) -> TorchDataset:
    return TorchDataset(which, open_task(task))
