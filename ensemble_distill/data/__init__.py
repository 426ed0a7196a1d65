"""Sources (what the rows of a split are) and views (how a row is rendered for a network).

Each module of this package with `claims(source)` and `load(entry, task)` is a kind of source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

from ensemble_distill.data import factory, image_folder
from ensemble_distill.data.columns import Columns, Declared
from ensemble_distill.data.entry import Described, Entry
from ensemble_distill.data.patterns import is_pattern
from ensemble_distill.data.several import held
from ensemble_distill.data.source import Source
from ensemble_distill.data.subset import Subset, read_rows
from ensemble_distill.data.vocabulary import Reading
from ensemble_distill.data.walk import is_folder, there
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.factories import is_factory
from ensemble_distill.runtime.files import refuse_special
from ensemble_distill.runtime.registry import Registry
from ensemble_distill.tasks import Task, open_task

__all__ = ["may_be_several", "open_inputs", "open_source", "source_kinds"]


class SourceKind(Protocol):
    """A kind of source: a module with these two functions."""

    def claims(self, source: str) -> bool:
        """Whether the text names this kind of source. Reads no data; at most one kind claims a text."""
        ...

    def load(self, entry: Entry, task: type[Task]) -> Source:
        """Opens the source whole; `entry.rows` is ignored."""
        ...


_KINDS = Registry(__name__, "claims")


def source_kinds() -> Iterator[SourceKind]:
    """Every kind of source, from the modules of this package."""
    yield from (cast(SourceKind, module) for module in _KINDS.modules.values())


def open_source(
    entry: str | os.PathLike[str] | Described,
    task: str = "classification",
    reading: Reading | None = None,
    columns: Declared | None = None,
    name: str = "",
    notes: Path | None = None,
) -> Source:
    """The source that an entry of `[data]` describes.

    Args:
        entry: an image folder, a saved data set, tar shards, an `.npz`, a table, a `.txt` or an `.npy` of tokens,
            `torch/NAME`, `file.py:factory` or `package.module:factory`; or an object with `source` (one of those),
            `rows` (a `.npy`, or None), `x` and `y` (names of arrays in an `.npz`).
        task: the task's key, which says what labels are; see `tasks`.
        reading: how a stream of tokens becomes rows.
        columns: what the columns of a table are.
        name: the split that the source is for. A data set with parts of its own chooses its part by this name.
        notes: the folder of the notes about tar shards; see `notes`. None keeps no notes.

    Raises:
        EdistillError: there is no such source, it is of no known kind, or its contents are refused.
    """
    described = Entry.of(entry, reading, columns, name, notes)
    kind = next((kind for kind in source_kinds() if kind.claims(described.source)), None)
    path = Path(described.source)
    if kind is None:
        wrong = "is neither a folder nor an .npz nor a table" if there(path) else "does not exist"
        raise EdistillError(
            f"The data's source {path} {wrong}. Give a folder of images, an .npz, a .csv, a .txt, or file.py:factory."
        )
    for read in (described.source, described.rows):
        if read is not None:
            refuse_special(read)
    source = kind.load(described, open_task(task))
    refuse_several_of_tokens(source, open_task(task))
    return source if described.rows is None else Subset(source, read_rows(described.rows, len(source)))


def may_be_several(entry: str | os.PathLike[str] | Described, columns: Declared | None) -> bool:
    """Whether rows may be several arrays. Opens nothing; a factory always may return several."""
    described = Entry.of(entry)
    if columns is not None and len(Columns.of(columns).parts) > 1:
        return True
    return not isinstance(described.x, str) or factory.claims(described.source)


def refuse_several_of_tokens(source: Source, task: type[Task]) -> None:
    """Raise EdistillError if rows are several arrays and the task predicts tokens."""
    if source.kind == "several" and task.of_tokens:
        raise EdistillError(
            f"Rows are {held(source)}, and the task is {task.key}, whose rows are tokens alone. Give those as x."
        )


def open_inputs(
    inputs: Sequence[str],
    task: str = "classification",
    reading: Reading | None = None,
    columns: Declared | None = None,
    arrays: Sequence[str] = (),
    model: str | None = None,
) -> Source:
    """The source that inputs of `predict` name: one source as `open_source` takes it, or any number of image files.

    Args:
        arrays: names of the arrays in an `.npz` that the student takes; empty for the single array x.
        model: the student that takes them, for messages.

    Raises:
        EdistillError: a file does not exist, or image files and other inputs are mixed.
    """
    if len(inputs) == 1 and (is_folder(inputs[0]) or not image_folder.is_image(inputs[0])):
        if not is_factory(inputs[0]) and not is_pattern(inputs[0]) and not there(inputs[0]):
            raise EdistillError(f"There is no {inputs[0]}. Give image files, a folder, or an .npz.")
        several = {name: name for name in arrays} if inputs[0].endswith(".npz") else {}
        entry = Entry(inputs[0], x=several, model=model) if several else inputs[0]
        return open_source(entry, task, reading, columns)
    for name in inputs:
        if not image_folder.is_image(name):
            raise EdistillError(
                f"{name} is not an image file (those end in {' '.join(image_folder.EXTENSIONS)}). Give image "
                "files, or one folder, or one .npz."
            )
        if not there(name):
            raise EdistillError(f"There is no {name}.")
    return image_folder.ImageFolder(Path(), inputs)
