"""What the columns of a table are, as the settings declare them, and how their values become numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError, first_few, nearest

Encoding = Literal["one-hot", "index"]


class Declared(Protocol):
    """A table of the settings, as far as this room reads it."""

    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def categories(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def encoding(self) -> Encoding: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def classes(self) -> Sequence[str] | None: ...


@dataclass(frozen=True)
class Columns:
    """Attributes:
    inputs: the columns that members are given, in their order.
    categories: of those that hold no numbers, the values in the order in which they are encoded.
    encoding: a category becomes as many numbers as it has values, one of them 1, or one number, its place.
    labels: the columns of the labels or targets; a table that has none of them is unlabeled.
    classes: what the label column calls the classes, in their order; None where it holds their numbers.
    """

    inputs: tuple[str, ...]
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    encoding: Encoding = "one-hot"
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, given: Declared) -> Columns:
        return cls(
            inputs=tuple(given.inputs),
            categories=dict(given.categories),
            encoding=given.encoding,
            labels=tuple(given.labels),
            classes=None if given.classes is None else tuple(given.classes),
        )

    @property
    def groups(self) -> tuple[int, ...]:
        """For each number of an input the place of the column that it comes from."""
        return tuple(at for at, name in enumerate(self.inputs) for _ in self._features(name))

    @property
    def features(self) -> tuple[str, ...]:
        """What each number of an input is called: its column, and of a category the value or values it stands for."""
        return tuple(feature for name in self.inputs for feature in self._features(name))

    @property
    def numeric(self) -> Array:
        """(F,) whether each number of an input is one that varies by amounts, and not of a category."""
        return np.array([self.inputs[at] not in self.categories for at in self.groups])

    def _features(self, name: str) -> list[str]:
        if name not in self.categories:
            return [name]
        values = self.categories[name]
        return [f"{name}={value}" for value in (values if self.encoding == "one-hot" else ["|".join(values)])]

    def read(self, header: Sequence[str], path: str) -> tuple[str, ...]:
        """The columns of a file that are read: its inputs, and its labels if it has them.

        Raises:
            EdistillError: one is missing, some labels are there and others not, or a name stands twice.
        """
        twice = next((name for name in header if list(header).count(name) > 1), None)
        if twice is not None:
            raise EdistillError(f"{path} has the column {twice!r} {list(header).count(twice)} times. Name each once.")
        for name in self.inputs:
            if name not in header:
                raise EdistillError(f"{path} has no column {name!r}{_meant(name, header)} Mend data.columns.inputs.")
        there = [name for name in self.labels if name in header]
        if there and len(there) < len(self.labels):
            lacking = next(name for name in self.labels if name not in header)
            raise EdistillError(
                f"{path} has the label column {there[0]!r} and not {lacking!r}{_meant(lacking, header)} Give all of "
                "data.columns.labels, or none."
            )
        return (*self.inputs, *there)

    def encoded(self, columns: Mapping[str, Sequence[Any]], path: str, first_row: int) -> Array:
        """Some rows of the inputs, (B, F) float32.

        Args:
            columns: values by column, as the file has them.
            first_row: the row that the first of them is.

        Raises:
            EdistillError: a value is no number, or no declared category.
        """
        made = []
        for name in self.inputs:
            at = f"{path}: column {name}"
            if name not in self.categories:
                made.append(finite(columns[name], at, first_row)[:, None])
                continue
            places = indices(columns[name], self.categories[name], at, first_row, f"data.columns.categories.{name}")
            eye = np.eye(len(self.categories[name]), dtype=np.float32)
            made.append(eye[places] if self.encoding == "one-hot" else places[:, None].astype(np.float32))
        return np.concatenate(made, axis=1)

    def label_values(self, columns: Mapping[str, Sequence[Any]], path: str, first_row: int) -> Array:
        """Some rows of the labels, (B,) or (B, D), as `Task.as_labels` takes them. Raises as `encoded` does."""
        read: Callable[[Sequence[Any], str, int], Array] = _targets
        if self.classes is not None:
            read = partial(_classes, self.classes)
        made = [read(columns[name], f"{path}: column {name}", first_row) for name in self.labels]
        return made[0] if len(made) == 1 else np.stack(made, axis=1)


def _classes(classes: Sequence[str], values: Sequence[Any], named: str, first_row: int) -> Array:
    return indices(values, classes, named, first_row, "data.columns.classes")


def _targets(values: Sequence[Any], named: str, first_row: int) -> Array:
    finite(values, named, first_row)
    return numbers(values, named, first_row)


def numbers(values: Sequence[Any], named: str, first_row: int) -> Array:
    """float64 (B,); whole numbers in a column of text as int64. Raises EdistillError for what is no number."""
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        row = next(at for at, value in enumerate(values) if not _is_number(value))
        raise EdistillError(
            f"{named} is {values[row]!r} at row {first_row + row}, which is no number. Mend or drop that row, or "
            "declare the column's values in data.columns.categories."
        ) from None
    whole = np.isfinite(found).all() and (np.abs(found) < 2**53).all() and (found == np.rint(found)).all()
    return found.astype(np.int64) if whole else found


def finite(values: Sequence[Any], named: str, first_row: int) -> Array:
    """float32 (B,). Raises EdistillError for what is no number, or none that float32 holds."""
    with np.errstate(over="ignore"):
        found = numbers(values, named, first_row).astype(np.float32)
    bad = ~np.isfinite(found)
    if bad.any():
        row = int(bad.argmax())
        raise EdistillError(
            f"{named} is {values[row]} at row {first_row + row}. Fill it in as the members had it filled in, or drop "
            "the row: nothing is guessed for a value that is missing or not finite."
        )
    return found


def indices(values: Sequence[Any], known: Sequence[str], named: str, first_row: int, key: str) -> Array:
    """The place of each value among those that are declared, int64 (B,). Raises EdistillError for any other."""
    places = {value: place for place, value in enumerate(known)}
    texts = [value if isinstance(value, str) else "" if value is None else str(value) for value in values]
    found = [places.get(text, -1) for text in texts]
    if -1 in found:
        row = found.index(-1)
        raise EdistillError(
            f"{named} is {values[row]!r} at row {first_row + row}, which is not among the {len(known)} declared in "
            f"{key} ({first_few(known, 6)}). Mend the row, or declare it there, as the members saw it encoded."
        )
    return np.array(found, np.int64)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _meant(name: str, header: Sequence[str]) -> str:
    close = nearest(name, header)
    return f" (did you mean {close[0]!r}?)." if close else f"; it has {first_few(list(header), 8) or 'none'}."
