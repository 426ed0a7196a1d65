"""The columns of a table, as the settings declare them, and how their values become numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError, first_few, nearest
from ensemble_distill.facts import Encoding, InputColumns

LABELS = (
    "Fix or drop that row; a column of names has its classes declared in data.columns.classes, and several columns of "
    "labels hold 0 and 1."
)
MISSING = (
    "Fix or drop that row; rows without labels belong in data.transfer, in a table without that column, as does a "
    "table of which no row has one."
)
CLASSES = "data.columns.classes"


class Declared(Protocol):
    """The settings of a table's columns that this package reads."""

    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def text(self) -> str | Sequence[str] | None: ...
    @property
    def array(self) -> str | None: ...
    @property
    def categories(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def encoding(self) -> Encoding: ...
    @property
    def images(self) -> str | None: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def classes(self) -> Sequence[str] | None: ...


@dataclass(frozen=True)
class Columns(InputColumns):
    """The columns that make up a row's inputs and labels.

    Attributes:
        labels: the columns of the labels or targets; a table that has none of them is unlabeled.
        classes: the names of the classes in the label column, in their order; None if it holds their numbers.
        model: the exported student that declares these columns, for messages; None if the settings declare them.
    """

    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    model: str | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, given: Declared) -> Columns:
        return cls(
            inputs=tuple(given.inputs),
            categories={name: tuple(values) for name, values in given.categories.items()},
            encoding=given.encoding,
            images=given.images,
            labels=tuple(given.labels),
            classes=None if given.classes is None else tuple(given.classes),
            text=_texts(given.text),
            array=given.array,
            model=getattr(given, "model", None),
        )

    @classmethod
    def trained(cls, columns: InputColumns, model: str) -> Columns:
        """The input columns that an exported student was trained on, without labels."""
        told = {key: getattr(columns, key) for key in ("images", "text", "array")}
        return cls(columns.inputs, columns.categories, columns.encoding, **told, model=model)

    @property
    def asked(self) -> InputColumns:
        """The columns of the inputs alone, which an exported student needs to know."""
        return InputColumns(
            self.inputs, self.categories, self.encoding, images=self.images, text=self.text, array=self.array
        )

    @property
    def numeric(self) -> Array:
        """(F,) whether each number of an input is a quantity; False for the numbers of a category."""
        return np.array([self.inputs[at] not in self.categories for at in self.groups])

    @property
    def declared(self) -> tuple[str, ...]:
        """The columns of the inputs, followed by those of the labels."""
        return (*dict.fromkeys(name for _, name in self._inputs), *self.labels)

    @property
    def _inputs(self) -> list[tuple[str, str]]:
        """(key, column) of each input column, where `key` under data.columns declares it."""
        alone = [(key, column) for key in ("images", "array") if (column := getattr(self, key)) is not None]
        return alone + [(key, name) for key, names in (("inputs", self.inputs), ("text", self.texts)) for name in names]

    def read(self, header: Sequence[str], path: str) -> tuple[str, ...]:
        """The columns to read from a file: those of the inputs, and those of the labels if it has them.

        Raises:
            EdistillError: an input is missing, only some of the labels are there, or a name occurs twice.
        """
        twice = next((name for name in header if list(header).count(name) > 1), None)
        if twice is not None:
            raise EdistillError(f"{path} has the column {twice!r} {list(header).count(twice)} times. Name each once.")
        for key, name in self._inputs:
            if name not in header:
                mend = f"Fix data.columns.{key}."
                if self.model is not None:
                    mend = f"{self.model} was trained on it: give a table that has it, by that name."
                raise EdistillError(f"{path} has no column {name!r}{_meant(name, header)} {mend}")
        there = [name for name in self.labels if name in header]
        if there and len(there) < len(self.labels):
            lacking = next(name for name in self.labels if name not in header)
            raise EdistillError(
                f"{path} has the label column {there[0]!r} and not {lacking!r}{_meant(lacking, header)} Give all of "
                "data.columns.labels, or none."
            )
        return (*dict.fromkeys(name for _, name in self._inputs), *there)

    def encoded(self, columns: Mapping[str, Sequence[Any]], path: str, first_row: int) -> Array:
        """The numbers and categories of some rows, (B, F) float32.

        Args:
            columns: values by column, as the file has them.
            path: the file, for messages.
            first_row: the number of the first row, for messages.

        Raises:
            EdistillError: a value is not a finite number, or not a declared category.
        """
        made = []
        declare = "Fix or drop that row, or declare the column's values in data.columns.categories."
        if self.model is not None:
            declare = f"Fix or drop that row: {self.model} was trained on numbers there."
        for name in self.inputs:
            at = f"{path}: column {name}"
            if name not in self.categories:
                made.append(finite(columns[name], at, first_row, declare)[:, None])
                continue
            key = f"data.columns.categories.{name}" if self.model is None else None
            places = indices(columns[name], self.categories[name], at, first_row, key)
            eye = np.eye(len(self.categories[name]), dtype=np.float32)
            made.append(eye[places] if self.encoding == "one-hot" else places[:, None].astype(np.float32))
        return np.concatenate(made, axis=1)

    def read_texts(
        self, columns: Mapping[str, Sequence[Any]], path: str, first_row: int
    ) -> list[str] | list[tuple[str, ...]]:
        """The texts of some rows, or pairs of texts. Raises EdistillError if a value is missing or not text."""
        for name in self.texts:
            values = columns[name]
            odd = next((at for at, value in enumerate(values) if not isinstance(value, str)), None)
            if odd is not None:
                raise EdistillError(
                    f"{path}: column {name} is {values[odd]!r} at row {first_row + odd}, which is not text. Fix or "
                    "drop that row; an empty text is one, too."
                )
        if isinstance(self.text, str):
            return list(columns[self.text])
        return list(zip(*(columns[name] for name in self.texts), strict=True))

    def label_values(self, columns: Mapping[str, Sequence[Any]], path: str, first_row: int) -> Array:
        """The labels of some rows, (B,) or (B, D), as `Task.as_labels` takes them. Raises as `encoded` does."""
        read: Callable[[Sequence[Any], str, int], Array] = _targets
        if self.classes is not None:
            read = partial(_classes, self.classes)
        made = [read(columns[name], f"{path}: column {name}", first_row) for name in self.labels]
        return made[0] if len(made) == 1 else np.stack(made, axis=1)


def _texts(given: str | Sequence[str] | None) -> str | tuple[str, str] | None:
    if given is None or isinstance(given, str):
        return given
    first, second = given  # the settings allow a list of two only
    return first, second


def _classes(classes: Sequence[str], values: Sequence[Any], named: str, first_row: int) -> Array:
    return indices(values, classes, named, first_row, CLASSES)


def _targets(values: Sequence[Any], named: str, first_row: int) -> Array:
    finite(values, named, first_row, LABELS)
    return numbers(values, named, first_row, LABELS)


def numbers(values: Sequence[Any], named: str, first_row: int, mend: str) -> Array:
    """The numbers of a column, (B,): int64 if all are whole and below 2**53, otherwise float64.

    Args:
        mend: what to do about a value that is not a number, for the message.

    Raises:
        EdistillError: a value is not a number.
    """
    try:
        if any(isinstance(value, str) and "_" in value for value in values):
            raise ValueError  # Python reads "1_0" as 10, which no table means
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        row = next(at for at, value in enumerate(values) if not _is_number(value))
        raise EdistillError(
            f"{named} is {values[row]!r} at row {first_row + row}, which is not a number. {_missing(values[row], mend)}"
        ) from None
    whole = np.isfinite(found).all() and (np.abs(found) < 2**53).all() and (found == np.rint(found)).all()
    return found.astype(np.int64) if whole else found


def finite(values: Sequence[Any], named: str, first_row: int, mend: str) -> Array:
    """The numbers of a column, float32 (B,). Raises EdistillError for a value that is not a finite float32 number."""
    with np.errstate(over="ignore"):
        found = numbers(values, named, first_row, mend).astype(np.float32)
    bad = ~np.isfinite(found)
    if bad.any():
        row = int(bad.argmax())
        if mend == LABELS:
            raise EdistillError(f"{named} is {values[row]} at row {first_row + row}, which is not a label. {MISSING}")
        raise EdistillError(
            f"{named} is {values[row]} at row {first_row + row}. Fill it in as it was for the members, or drop the "
            "row: missing and non-finite values are not guessed."
        )
    return found


def _missing(value: Any, mend: str) -> str:
    """What to do about a value: `mend`, or for a missing label the advice about missing labels."""
    return MISSING if mend == LABELS and value in (None, "") else mend


def indices(values: Sequence[Any], known: Sequence[str], named: str, first_row: int, key: str | None) -> Array:
    """The index of each value among the known ones, int64 (B,).

    Args:
        key: the setting that declares the known values; None if a student was trained with them.

    Raises:
        EdistillError: a value is not among them.
    """
    places = {value: place for place, value in enumerate(known)}
    texts = [value if isinstance(value, str) else "" if value is None else str(value) for value in values]
    found = [places.get(text, -1) for text in texts]
    if -1 in found:
        row = found.index(-1)
        there = "that the student was trained with" if key is None else f"declared in {key}"
        mend = "or drop it" if key is None else "or declare it there, as the members saw it encoded"
        if key == CLASSES:
            mend = "drop it, or declare it there, in the members' order"
        if values[row] in (None, ""):
            mend = "or drop it"
            if key == CLASSES:
                mend += "; rows without labels belong in data.transfer, in a table without that column"
        raise EdistillError(
            f"{named} is {values[row]!r} at row {first_row + row}, which is not among the {len(known)} {there} "
            f"({first_few(known, 6)}). Fix the row, {mend}."
        )
    return np.array(found, np.int64)


def _is_number(value: Any) -> bool:
    if isinstance(value, str) and "_" in value:
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _meant(name: str, header: Sequence[str]) -> str:
    close = nearest(name, header)
    return f" (did you mean {close[0]!r}?)." if close else f"; it has {first_few(list(header), 8) or 'none'}."
