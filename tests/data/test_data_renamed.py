"""Splits that lack a class, or list them in another order: their labels go by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import examples, make_folder, refused, settings

from ensemble_distill.data import open_source
from ensemble_distill.data.renamed import Renamed, by_name
from ensemble_distill.data.source import Array
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

NAMES = ("ant", "bee", "cat")
SPLITS = {"train": 40, "validation": 36, "test": 36}
FIGURES = ("models", "fidelity", "subensembles")


def write(root: Path, x: Array, y: Array) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for row, (image, label) in enumerate(zip(x, y, strict=True)):
        (root / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / NAMES[label] / f"{row:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_folder(tmp_path / "tiny", rows=SPLITS)
    for seed, (split, rows) in enumerate(SPLITS.items()):
        write(made / "pictures" / split, *examples(rows, seed))
    return made


def of(folder: Path, cache: str = "cache") -> Settings:
    return settings(
        folder,
        {
            **{f"data.{split}": str(folder / "pictures" / split) for split in SPLITS},
            "views.transform": "mixup",
            "train.epochs": 1,
            "output.cache": str(folder / cache),
            "output.runs": str(folder / f"runs-{cache}"),
        },
    )


def without(folder: Path, split: str, name: str) -> None:
    shutil.rmtree(folder / "pictures" / split / name)


@pytest.mark.thorough
def test_a_split_without_a_class_means_what_its_folders_are_called(folder: Path) -> None:
    """The same rows as arrays, whose labels are numbers, are the oracle."""
    for split in ("validation", "test"):
        without(folder, split, "ant")
    cache_logits(of(folder))
    train(of(folder))
    named = evaluate(of(folder)).to_json()
    assert calibrate(of(folder)).rows == 24
    for split in SPLITS:
        source = open_source(folder / "pictures" / split)
        x = np.stack([source.item(row).x for row in range(len(source))])
        shift = 0 if split == "train" else 1
        assert source.labels is not None
        np.savez(folder / f"data/{split}.npz", x=x, y=source.labels + shift, classes=np.array(NAMES))
    arrays = of(folder, "cache-2").model_copy(update={"data": settings(folder).data})
    cache_logits(arrays)
    train(arrays)
    again = evaluate(arrays).to_json()
    assert {key: again[key] for key in FIGURES} == {key: named[key] for key in FIGURES}


@pytest.mark.parametrize("lacking", ["train", "validation"])
def test_whichever_split_lacks_it(folder: Path, lacking: str) -> None:
    without(folder, lacking, "bee")
    assert cache_logits(of(folder)).classes == NAMES
    assert train(of(folder)).fresh
    assert cache_logits(of(folder)).added == 0


def test_a_class_that_the_ensemble_does_not_have_is_refused_by_name(folder: Path) -> None:
    without(folder, "test", "bee")
    (folder / "pictures/test/cat").rename(folder / "pictures/test/wolf")
    with refused("data.test has the class 'wolf'", "3 of the ensemble (ant, bee, cat)", "Rename it"):
        cache_logits(of(folder))
    (folder / "pictures/test/wolf").rename(folder / "pictures/test/cat")  # the remedy
    cache_logits(of(folder))
    train(of(folder))
    (folder / "pictures/test/cat").rename(folder / "pictures/test/wolf")
    with refused("data.test has the class 'wolf'"):
        evaluate(of(folder))


def test_a_cache_remembers_the_classes_of_splits_that_are_no_longer_given(folder: Path) -> None:
    without(folder, "train", "cat")
    cache_logits(of(folder))
    fewer = settings(
        folder,
        {
            **{f"data.{split}": None for split in SPLITS},
            "data.train": str(folder / "pictures/train"),
            "views.transform": "mixup",
            "train.epochs": 1,
        },
    )
    assert cache_logits(fewer).added == 0
    assert train(fewer).fresh


def test_labels_go_by_name_in_every_way_to_read_them(tmp_path: Path) -> None:
    y = np.array([0, 1, 1, 0])
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 6, 6), np.uint8), y=y, classes=np.array(["cat", "ant"]))
    source = open_source(tmp_path / "a.npz")
    mapped = by_name(source, NAMES, "data.test")
    assert isinstance(mapped, Renamed)
    assert_array_equal(mapped.labels, [2, 0, 0, 2])  # type: ignore[arg-type]
    assert [int(mapped.item(row).y) for row in range(4)] == [2, 0, 0, 2]  # type: ignore[arg-type]
    assert (mapped.classes, mapped.digest, len(mapped)) == (NAMES, source.digest, 4)
    assert by_name(source, ("cat", "ant"), "data.test") is source
    assert by_name(source, None, "data.test") is source
