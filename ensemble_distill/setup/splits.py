"""The data in and beside a folder, and the splits that its names imply."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_distill.data import open_source, table
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.folders import SHARD, is_archive, is_saved, is_sharded
from ensemble_distill.data.listing import entries, holds_pictures, is_set
from ensemble_distill.data.saved_dataset import undeclared
from ensemble_distill.data.several import held
from ensemble_distill.data.source import Source
from ensemble_distill.data.stored import Archive
from ensemble_distill.errors import EdistillError
from ensemble_distill.setup.columns import likely_columns
from ensemble_distill.setup.numbered import patterns_in, word_of
from ensemble_distill.tasks import task_names

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
    "calibration": ("calibration", "calib"),
    "transfer": ("transfer", "unlabeled", "unlabelled"),
}
SPLIT = {word: split for split, words in NAMES.items() for word in words}
DATA = ("data", "dataset", "datasets")  # common names of data folders
DEEPEST = 2
ORDER = ("classification", "multi-label", "regression")  # in which tasks are tried on the labels


@dataclass(frozen=True)
class Splits:
    """The data found.

    Attributes:
        entries: by split, as in `[data]`, including `ood/NAME`.
        task: the first task that the labels fit with the fewest problems; None if no split has labels.
        sources: the splits that could be opened.
        problems: why the others could not, by split.
        others: data that belongs to no split.
        columns: an example of `data.columns` for the first table whose columns are not declared.
        shape: (H, W, C) of the first picture, if it is in a table with undeclared columns.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    task: str | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    others: tuple[Path, ...] = ()
    columns: dict[str, Any] | None = None
    shape: tuple[int, ...] | None = None


def find_splits(folders: Sequence[Path]) -> Splits:
    """The splits of the first folder that contains any data; failing that, the only table in one of them as train."""
    folders = list(dict.fromkeys(one.resolve() for one in folders))
    for folder in folders:
        found, others = _named(folder)
        if found or others:
            return _opened(found, others)
    for folder in folders:
        tables = [one for one in entries(folder) if is_table(one)]
        if len(tables) == 1:
            return _opened({"train": Entry(str(tables[0]))}, [])
    return Splits()


def _named(folder: Path) -> tuple[dict[str, Entry], list[Path]]:
    """The data named like splits, and all other data; a single data set is train."""
    found: dict[str, Entry] = {}
    others: list[Path] = []
    for path in _sets(folder, 0):
        name = word_of(path) if word_of(path) in SPLIT else path.stem.lower()
        if path.parent.name.lower() == "ood" or name.startswith("ood"):
            label = re.sub(r"^ood[-_ ]*", "", path.stem) or "ood"
            found.setdefault(f"ood/{label}", Entry(str(path)))
        elif (split := SPLIT.get(name)) is not None:
            found.setdefault(split, Entry(str(path)))
        elif path.suffix == ".npz" and (arrays := _arrays(path)):
            found |= {split: entry for split, entry in arrays.items() if split not in found}
        else:
            others.append(path)
    if not found and len(others) == 1 and not holds_pictures(others[0]):  # pictures directly in it have no labels
        found["train"] = Entry(str(others.pop()))
    return found, others


def _sets(folder: Path, depth: int) -> Iterator[Path]:
    """Archives of arrays, tables, shards, and folders of pictures or saved data sets, the shallowest first.

    Numbered files of one split are yielded as a pattern.
    """
    here = entries(folder)
    patterns = patterns_in([one for one in here if is_table(one) or is_shard(one)], SPLIT)
    yield from patterns
    grouped = {file for files in patterns.values() for file in files}
    for one in here:
        if one in grouped:
            continue
        inside = one.is_dir() and (_of_splits(one) or _of_shards(one))
        whole = one.is_dir() and is_set(one) and not inside
        called = one.stem.lower() in SPLIT
        if whole or is_data(one) or (is_table(one) and (depth or called)) or (is_shard(one) and called):
            yield one
        elif one.is_dir() and depth < DEEPEST and (depth or one.name.lower() in DATA or inside):
            yield from _sets(one, depth + 1)


def is_data(path: Path) -> bool:
    """Whether a file is an archive of inputs; other archives hold the outputs of a member."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        return "x" in Archive(path).names or bool(_arrays(path))
    except EdistillError:
        return False


def is_table(path: Path) -> bool:
    """Whether a file is a table, by its name."""
    return table.claims(str(path)) and path.is_file()


def is_shard(path: Path) -> bool:
    """Whether a file is a tar archive; weights named `.pth.tar` are not."""
    return path.suffix == SHARD and path.is_file() and is_archive(path)


def _of_shards(folder: Path) -> bool:
    """Whether a folder contains archives named like splits; as a single data set it would include the test rows in
    training."""
    return is_sharded(folder) and any(word_of(one) in SPLIT for one in entries(folder) if is_shard(one))


def _of_splits(folder: Path) -> bool:
    """Whether a folder's subfolders are named like splits, and so are not classes."""
    return not holds_pictures(folder) and any(one.name.lower() in SPLIT for one in entries(folder) if one.is_dir())


def _arrays(path: Path) -> dict[str, Entry]:
    """The arrays of each split in an archive that holds several: train_x and train_y, or x_train and y_train."""
    try:
        names = Archive(path).names
    except EdistillError:
        return {}
    found: dict[str, Entry] = {}
    for split, words in NAMES.items():
        for word in words:
            for x, y in ((f"{word}_x", f"{word}_y"), (f"x_{word}", f"y_{word}")):
                if x in names and y in names:
                    found.setdefault(split, Entry(str(path), x=x, y=y))
    return found


def _opened(found: dict[str, Entry], others: list[Path]) -> Splits:
    """The splits under the task with the fewest problems, the first of equal ones."""
    best: Splits | None = None
    for task in (*ORDER, *(name for name in task_names() if name not in ORDER)):
        tried = _tried(found, others, task)
        if best is None or len(tried.problems) < len(best.problems):
            best = tried
        if not tried.problems:
            break
    assert best is not None
    return best


def _tried(found: dict[str, Entry], others: list[Path], task: str) -> Splits:
    sources: dict[str, Source] = {}
    problems: dict[str, str] = {}
    columns: dict[str, Any] | None = None
    shape: tuple[int, ...] | None = None
    for split, entry in found.items():
        try:
            if (example := _undeclared(entry.source)) is not None:  # only the user knows the meaning of its columns
                columns = columns or example
                if shape is None and "images" in example:
                    shape = open_source(entry.source, columns=Columns(images=example["images"])).item(0).x.shape
                continue
            sources[split] = open_source(entry, task)
            sources[split].item(0)
        except EdistillError as error:
            sources.pop(split, None)
            problems[split] = str(error)
    labeled = any(source.labels is not None for name, source in sources.items() if not name.startswith("ood/"))
    return Splits(found, task if labeled else None, sources, problems, tuple(others), columns, shape)


def _undeclared(source: str) -> dict[str, Any] | None:
    """An example of `data.columns`; None if nothing needs declaring."""
    if table.claims(source):
        return likely_columns(source)
    if is_saved(source) and (columns := undeclared(source)) is not None:
        return {"inputs": columns[:-1], "labels": columns[-1:]}
    return None


def told_splits(splits: Splits) -> dict[str, dict[str, Any]]:
    """What each split contains, or why that is unknown, for the table of `init`."""
    return {name: _told(splits, name) for name in splits.entries}


def _told(splits: Splits, name: str) -> dict[str, Any]:
    source = splits.sources.get(name)
    if source is None:
        return {"problem": splits.problems.get(name, "its columns are not declared yet")}
    return {"rows": len(source), "holds": held(source), "labels": source.labels is not None}
