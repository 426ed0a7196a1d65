"""Ready-made outputs on disk: which splits they cover, and a split's outputs in the order of its rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.data.reading_csv import BLOCK, read_csv
from ensemble_distill.data.stored import Archive, read_npy
from ensemble_distill.data.subset import in_split
from ensemble_distill.errors import EdistillError, first_few, first_line
from ensemble_distill.facts import SPLITS
from ensemble_distill.runtime.files import memory
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import Rows

Array = NDArray[Any]
OOD = "ood"
TABLES = (".csv", ".parquet")
ENDINGS = (".npy", *TABLES)
NAMES = "classes"  # entry of an .npz: the names of its columns
MADE = ("transform", "seed")  # entries of an .npz: how the views were made that its outputs are of
LABELS = frozenset({"label", "labels", "target", "y"})  # columns of data, or of a member whose outputs have such names
SHARES = 0.02  # how far a row's sum may be from 1 if its outputs are probabilities
SOME = 3  # rows whose pictures are looked for
KEYS = ("row", "file")  # the column of a table that identifies a row


def is_split(name: str) -> bool:
    return name in SPLITS or (name.startswith(f"{OOD}/") and len(name) > len(OOD) + 1)


def in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each split that has a file in a folder, with the file."""
    for name in SPLITS:
        yield from ((name, file) for ending in ENDINGS if (file := folder / f"{name}{ending}").is_file())
    if (folder / OOD).is_dir():
        inside = sorted(file for file in (folder / OOD).iterdir() if file.suffix in ENDINGS and file.is_file())
        yield from ((f"{OOD}/{file.stem}", file) for file in inside)


def holds_outputs(path: Path) -> bool:
    """Whether a file holds outputs rather than data.

    Outputs are an `.npz` with an array named like a split, an `.npy` of real numbers, or a table with a key column
    that is not data. An `.npz` that cannot be read counts as outputs, other files do not.
    """
    try:
        if path.suffix.lower() == ".npz":
            return any(map(is_split, Archive(path).names))
        if path.suffix.lower() == ".npy":
            return str(np.load(path, mmap_mode="r", allow_pickle=False).dtype.kind) == "f"
        return not _is_data(path, _header(path))
    except (EdistillError, ValueError, OSError, EOFError):
        return path.suffix.lower() == ".npz"


def _is_data(file: Path, columns: Sequence[str]) -> bool:
    """Whether a table holds data: it has a column of labels, and inputs for them.

    Its pictures lie beside it, or it has other columns and the labels are whole numbers. Rows that sum to 1 are
    probabilities. Row numbers and labels alone are not data, since they have no inputs.
    """
    labels = [name.lower() in LABELS for name in columns if name not in KEYS]
    if not any(labels) or ("row" in columns and all(labels)):
        return False
    key, keys, values = _table(file, whole=False)
    if key == "file":
        return any((file.parent / name).is_file() for name in keys[:SOME])
    values = values[np.isfinite(values).all(axis=1)]
    one_hot = bool((np.abs(values.sum(axis=1) - 1) < SHARES).all())
    return not one_hot and bool((values[:, labels] % 1 == 0).all())


def refuse_labels(outputs: Outputs, task: type[Task], names: Sequence[str] | None) -> None:
    """Raise EdistillError for regression tables that may be data, since targets must not pass for a member's means."""
    for file in {} if task.named else outputs.tables:
        columns = [name for name in _header(file) if name not in KEYS]
        labels = [name for name in columns if name.lower() in LABELS]
        if labels and len(columns) > 1 and "row" in _header(file) and sorted(columns) != sorted(names or ()):
            raise EdistillError(
                f"{file} has the columns {first_few(columns, 6)}, and {labels[0]} is what data calls its targets. "
                "Rename it if these are what a member says, or move the file out of teachers.path if they are data."
            )


def holds_inputs(path: Path) -> bool:
    """Whether an `.npz` holds data, an array `x`."""
    try:
        return "x" in Archive(path).names
    except EdistillError:
        return False


def in_archive(path: Path) -> Outputs:
    """The outputs in an `.npz`; raises EdistillError if it has other arrays, or none of a split."""
    names = Archive(path).names
    beside = {NAMES, *MADE}
    others = [name for name in names if not is_split(name) and name not in beside]
    if others or not set(names) - beside:
        raise EdistillError(
            f"{path} holds {first_few(others or list(names)) or 'nothing'}, and a member's ready-made outputs are "
            f"arrays called {', '.join(SPLITS)} or {OOD}/NAME, with {NAMES} beside them for their columns' names, and "
            f"{' and '.join(MADE)} for those of views. Call them so, or move what is not a member out of teachers.path."
        )
    return Outputs(path, {name: path for name in names if name not in beside})


def of_folder(folder: Path) -> Outputs:
    """The outputs in a folder; raises EdistillError if two files are for the same split."""
    splits: dict[str, Path] = {}
    for name, file in in_folder(folder):
        if name in splits:
            raise EdistillError(
                f"{folder} has {splits[name].name} and {file.name}, both of {name}. Leave the one that the member says "
                "in it, and move the other away."
            )
        splits[name] = file
    return Outputs(folder, splits)


@dataclass(frozen=True)
class Outputs:
    """The files of a member's outputs.

    Attributes:
        path: the `.npz` or the folder.
        splits: the file for each split.
    """

    path: Path
    splits: Mapping[str, Path]

    @property
    def files(self) -> list[tuple[str, Path]]:
        """Each file once, with the name of its split, or "" for an `.npz`."""
        return [("", self.path)] if self.path.is_file() else sorted(self.splits.items())

    @property
    def tables(self) -> list[Path]:
        """The files that are tables."""
        return [file for file in self.splits.values() if file.suffix.lower() in TABLES]

    @property
    def named(self) -> str:
        """Where the names of the columns come from, for messages."""
        return f"{NAMES} in {self.path.name}" if self.path.is_file() else f"{self.path.name}'s columns"

    def names(self) -> list[str] | None:
        """The names of the columns, None if nothing says them; raises EdistillError if two files differ."""
        if self.path.is_file():
            archive = Archive(self.path)
            return [str(name) for name in archive.read(NAMES).tolist()] if NAMES in archive.names else None
        found = {file: names for file in self.splits.values() if (names := _column_names(file)) is not None}
        different = [file for file, names in found.items() if names != next(iter(found.values()))]
        if different:
            first = next(iter(found))
            raise EdistillError(
                f"{different[0]} has the columns {first_few(found[different[0]])}, and {first} "
                f"{first_few(found[first])}. Write the same in the same order."
            )
        return next(iter(found.values()), None)

    def sample(self) -> Array:
        """The stored outputs of the answered rows of one split, (n, ·).

        Raises:
            EdistillError: they cannot be read.
        """
        split, file = next(iter(self.splits.items()))
        if file.suffix.lower() in TABLES:
            values = _table(file)[2]
        else:
            archive = file.suffix.lower() == ".npz"
            values = Archive(file).read(split) if archive else read_npy(file, f"teachers.path {split}")
        rows: Array = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
        return rows[~np.isnan(rows).any(axis=1)] if rows.dtype.kind == "f" else rows

    @property
    def made(self) -> Mapping[str, str]:
        """What an `.npz` states about its views: its entries of `MADE`, as texts. Empty for a folder.

        Raises:
            EdistillError: an entry is not a single value.
        """
        if not self.path.is_file():
            return {}
        archive = Archive(self.path)
        found = {name: archive.read(name) for name in MADE if name in archive.names}
        for name, value in found.items():
            if value.size != 1:
                raise EdistillError(
                    f"{self.path} holds {name} of shape {value.shape}. Store one {name}, of all its views."
                )
        return {name: str(value.reshape(())) for name, value in found.items()}

    def read(self, split: str, rows: Rows) -> Array:
        """The outputs of a split in the order of its rows: (N, ·), or (V, N, ·) for V views.

        Raises:
            EdistillError: the file cannot be read, or its outputs are of other rows.
        """
        file = self.splits[split]
        if file.suffix.lower() in TABLES:
            return _by_key(file, split, rows)
        values = (
            Archive(file).read(split) if file.suffix.lower() == ".npz" else read_npy(file, f"teachers.path {split}")
        )
        if values.ndim not in (1, 2, 3) or values.dtype.kind not in "fiu" or not values.size:
            raise EdistillError(
                f"{file} has outputs {values.shape} of {values.dtype} of {split}. Give (N, ·), of floats, or (V, N, ·) "
                "of V views."
            )
        values = values.astype(np.float64 if values.dtype == np.float64 else np.float32, copy=False)
        if values.ndim == 3:
            return np.stack([_of_rows(view, file, split, rows) for view in values])
        return _of_rows(values, file, split, rows).reshape(len(rows), -1)


def _of_rows(values: Array, file: Path, split: str, rows: Rows) -> Array:
    """Select the outputs of a split's rows.

    There may be one output for each row, or one for each row that the split has before a limit. There may also be one
    for each row of a data set whose numbers the split's rows have as names; the last of both must then be the same.

    Raises:
        EdistillError: the outputs are of other rows.
    """
    if len(values) == len(rows):
        return values
    limited = in_split(rows)
    if limited is not None and len(values) == limited[0]:
        return values[limited[1]]
    if len(values) < len(rows) or rows.name(len(rows) - 1) != f"row {len(values) - 1}":
        raise _other_rows(file, split, len(values), len(rows) if limited is None else limited[0])
    return values[[int(rows.name(row).removeprefix("row ")) for row in range(len(rows))]]


def _other_rows(file: Path, split: str, there: int, here: int) -> EdistillError:
    return EdistillError(
        f"{file} has outputs of {there:,} rows of {split}, and the data has {here:,}. Give those of the same rows in "
        "the same order."
    )


# --- tables with keys -------------------------------------------------------------------------------------------


def _by_key(file: Path, split: str, rows: Rows) -> Array:
    key, found, values = _table(file)
    wanted = [str(row) for row in range(len(found))] if key == "row" else [rows.name(row) for row in range(len(rows))]
    at = {name: place for place, name in enumerate(found)}
    if len(at) < len(found):
        twice = next(name for place, name in enumerate(found) if at[name] != place)
        raise EdistillError(f"{file} has {key} {twice} twice. Give each row once.")
    missing = [name for name in wanted if name not in at]
    if missing:
        raise EdistillError(
            f"{file} has no outputs of {len(missing):,} of {len(wanted):,} rows of {split}: {first_few(missing)}. Give "
            f"them by {key}, as the data calls them."
        )
    ordered = values[[at[name] for name in wanted]]
    return _of_rows(ordered, file, split, rows) if key == "row" else ordered


def _column_names(file: Path) -> list[str] | None:
    """The columns of a table without its key; None if they are numbered 0, 1, …, and for other files."""
    if file.suffix.lower() not in TABLES:
        return None
    columns = _header(file)
    names = [name for name in columns if name not in KEYS]
    return None if all(name.isdigit() for name in names) and names == [str(k) for k in range(len(names))] else names


def _header(file: Path) -> list[str]:
    parquet = file.suffix.lower() == ".parquet"
    columns: list[str] = list(_parquet(file).schema_arrow.names if parquet else read_csv(file)[0])
    if len([name for name in columns if name in KEYS]) != 1 or len(columns) < 2:
        raise EdistillError(
            f"{file} has the columns {first_few(columns, 6) or 'of nothing'}. Give a column row, or file with the "
            "names of pictures, and one for each output."
        )
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise EdistillError(f"{file} has the column {twice!r} {columns.count(twice)} times. Name each once.")
    return columns


def _table(file: Path, whole: bool = True) -> tuple[str, list[str], Array]:
    """The key's name, the keys, and the outputs (N, ·); of the first block of rows unless `whole`."""
    columns = _header(file)
    key = next(name for name in columns if name in KEYS)
    try:
        if file.suffix.lower() == ".parquet":
            opened = _parquet(file)
            table = opened.read() if whole else next(opened.iter_batches(BLOCK))
            keys = [str(value) for value in table[key].to_pylist()]
            others = [table[name].to_numpy(zero_copy_only=False) for name in columns if name != key]
            return key, keys, np.stack(others, axis=1).astype(np.float64)
        keys, blocks = [], []
        for block in itertools.islice(read_csv(file)[1], None if whole else 1):
            keys += [text.strip() for text in block[key]]
            numbers = [[float(text or "nan") for text in block[name]] for name in columns if name != key]
            blocks.append(np.array(numbers, np.float64).T)
        return key, keys, np.concatenate(blocks) if blocks else np.empty((0, len(columns) - 1))
    except (ValueError, TypeError, OSError) as error:
        raise EdistillError(f"{file} is not a table of numbers: {first_line(error)}. Write it again.") from None


def _parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise EdistillError(
            f"{file} is Parquet, which needs a package: pip install 'edistill[tables]'. Or write it as CSV."
        ) from None
    try:
        opened = pyarrow.parquet.ParquetFile(file)
    except Exception as error:  # pyarrow's errors have no common class
        raise EdistillError(f"{file} cannot be read as Parquet: {first_line(error)}. Write it again.") from None
    claimed = 8 * opened.metadata.num_rows * opened.metadata.num_columns
    if claimed > memory():
        raise EdistillError(f"{file} claims {claimed:,} bytes, and this machine's memory has {memory():,}.")
    return opened
