"""A user's own map-style dataset, from `file.py:factory` or `package.module:factory`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ensemble_distill.data.decoding import as_color, in_eight_bits
from ensemble_distill.data.digests import examples_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.kinds import as_part, taken
from ensemble_distill.data.memo import Memo
from ensemble_distill.data.scale import unit_of
from ensemble_distill.data.several import apart, joined, refuse_unfit
from ensemble_distill.data.source import Array, Inputs, Item, Kind, Scale, Source
from ensemble_distill.data.walk import there
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.factories import is_factory, load_factory
from ensemble_distill.runtime.own import told_as_own
from ensemble_distill.tasks import Task, open_task
from ensemble_distill.tasks.checks.labels import as_classes

LABELS = ("y", "label", "labels", "target", "targets")  # names that mark a label, not an input
PROBED = 4  # rows that are read twice on opening


class Factory:
    """Rows of the dataset that a factory returns: an object with `len()` and `[row]`, where a row is x or (x, y).

    x is a PIL image, a uint8 array (H, W[, C]), a float array (F,), (C, L), (C, H, W) or (C, D, H, W), or a tensor of
    one of those; for tasks of tokens, whole numbers (L,). It may be a mapping of names to several of these, whole
    numbers included. It must be undistorted and the same at every read. y is a class or a target. The attributes
    `classes` (names) and `targets` (y of all rows) are used if present. Without `targets`, asking for labels reads
    every row once.

    Raises:
        EdistillError: the factory fails, or returns something else, or its first rows do not fit this description.
    """

    remarks: Sequence[str] = ()

    def __init__(self, spec: str, task: type[Task]) -> None:
        self.spec, self.task = spec, task
        self._dataset = self._made()
        if not hasattr(self._dataset, "__len__") or not hasattr(self._dataset, "__getitem__"):
            raise EdistillError(
                f"{spec} returned a {type(self._dataset).__name__}. Return an object with __len__ and "
                "__getitem__(row), such as a map-style torch Dataset."
            )
        self._order: tuple[Any, ...] = ()  # names of a row's several arrays, in the order of the first row read
        self._length = len(self._dataset)
        if self._length == 0:
            raise EdistillError(f"{spec} returned a {type(self._dataset).__name__} without rows.")
        self.classes = self._class_names(getattr(self._dataset, "classes", None))
        self._targets = self._all_targets(getattr(self._dataset, "targets", None))
        first = self._read(0)
        self.kind: Kind = first.kind
        self._labeled = first.y is not None
        self._shape = _fixed(first)
        self._memo: Memo[Item] = Memo(self._length)
        self._probe()

    def _made(self) -> Any:
        return load_factory(self.spec, "the data's source")()

    def __len__(self) -> int:
        return self._length

    def item(self, row: int) -> Item:
        """The row as the user's object returns it; small data is kept.

        Raises:
            EdistillError: reading fails, `as_inputs` or `as_labels` refuses what it gives, or x is of another kind
                or shape than that of row 0.
        """
        return self._memo.get(row, self._checked)

    def name(self, row: int) -> str:
        return f"row {row}"

    @cached_property
    def labels(self) -> Array | None:
        if self._targets is not None:
            return self._targets
        if self.item(0).y is None:
            return None
        labels = [self.item(row).y for row in range(len(self))]
        missing = next((row for row, y in enumerate(labels) if y is None), None)
        if missing is not None:
            raise EdistillError(
                f"{self.spec}: row {missing} has no y, but row 0 has. Give every row one, or none; rows without belong "
                "in data.transfer."
            )
        return np.array(labels)

    @cached_property
    def scale(self) -> Scale | None:
        return unit_of(Inputs(self), self.kind)

    @cached_property
    def _digest(self) -> tuple[str, str]:
        return examples_digest(len(self), self.labels, self.classes, lambda row: self.item(row).x)

    @property
    def digest(self) -> str:
        return self._digest[0]

    @property
    def digest_scope(self) -> str:
        return self._digest[1]

    def __reduce__(self) -> tuple[Callable[[str, str], Factory], tuple[str, str]]:
        # the user's class may come from a file that no other process can import by name
        return _again, (self.spec, self.task.key)

    def _class_names(self, names: Any) -> tuple[str, ...] | None:
        if isinstance(names, np.ndarray):
            names = names.tolist()
        if not isinstance(names, Sequence) or isinstance(names, str):
            return None  # some datasets keep the number of classes there
        return as_classes(names, f"{self.spec}: .classes")

    def _all_targets(self, targets: Any) -> Array | None:
        if targets is None:
            return None
        named = f"{self.spec}: .targets"
        return self.task.as_labels(_as_array(targets, named), self._length, named, self.classes)

    def _probe(self) -> None:
        """Raise EdistillError for a dataset that augments: members and student would get different inputs."""
        for row in range(min(PROBED, self._length)):
            first, again = self._checked(row), self._checked(row)
            if first.x.shape != again.x.shape or (first.x != again.x).any():
                raise EdistillError(
                    f"{self.spec} gives another x each time row {row} is read. Return undistorted rows: "
                    "[views] distorts, in the same way for the members and the student."
                )

    def _checked(self, row: int) -> Item:
        item = self._read(row)
        if item.y is not None and not self._labeled:
            raise EdistillError(
                f"{self.spec}: row {row} has y {item.y}, but row 0 has none. Give every row one, or none; rows without "
                "belong in data.transfer."
            )
        if (shape := _fixed(item)) != self._shape:
            raise EdistillError(
                f"{self.spec}: row {row} is {_shown(shape)}, but row 0 is {_shown(self._shape)}. Give every row the "
                "same kind of x."
            )
        return item

    def _read(self, row: int) -> Item:
        with told_as_own(f"{self.spec}: reading row {row}"):
            value = self._dataset[row]
        x, y = self._parts(value, row)
        item = self._several(x, row) if isinstance(x, Mapping) else self._one(x, row)
        if y is not None:
            named = f"{self.spec}: y"
            label = _as_array(y, named)
            y = self.task.as_labels(label[None], 1, named, self.classes, row)[0]
        if self._targets is not None:
            if y is not None and not np.array_equal(y, self._targets[row]):
                raise EdistillError(
                    f"{self.spec}: y of row {row} is {y}, but .targets says {self._targets[row]}. Make them "
                    "agree, or leave .targets out."
                )
            y = self._targets[row]
        return replace(item, y=y)

    def _one(self, x: Any, row: int) -> Item:
        named = f"{self.spec}: x"
        inputs, kind = taken(_as_array(x, named)[None], named, self.task.of_tokens, row)
        return Item(inputs[0].copy(), None, kind)  # the user's object may use its buffer again

    def _several(self, x: Mapping[Any, Any], row: int) -> Item:
        """Several arrays by name, joined in the order of the first row's."""
        refuse_unfit([str(name) for name in x], f"{self.spec}: row {row}")
        parts = {}
        self._order = self._order or tuple(x)
        for name in sorted(x, key=lambda name: (name not in self._order, (*self._order, name).index(name))):
            named = f"{self.spec}: {name}"
            array = _as_array(x[name], named)
            if array.ndim == 0:
                raise EdistillError(
                    f"{named} of row {row} is {array}, one number. Return labels beside the arrays, (row without "
                    f"{name!r}, y), and a number that members take as an array of one, [number]."
                )
            inputs, kind = as_part(array[None], named, row)
            parts[name] = Item(inputs[0], None, kind)
        return joined(parts)

    def _parts(self, value: Any, row: int) -> tuple[Any, Any]:
        """x and y of the dataset's value. A tuple, list or mapping of one element stands for that element."""
        if isinstance(value, tuple | list) and len(value) in (1, 2):
            x, y = value if len(value) == 2 else (value[0], None)
            which = f"x of row {row}"
        else:
            x, y, which = value, None, f"row {row}"
        if isinstance(x, Mapping) and len(x) == 1:
            (x,) = x.values()
        if x is value and isinstance(x, Mapping) and (label := next((key for key in x if key in LABELS), None)):
            raise EdistillError(
                f"{self.spec}: row {row} is a table of {', '.join(map(str, x))}. Return the label beside what members "
                f"are given, (x, row[{label!r}]), where x is one array, or a table of several."
            )
        if isinstance(x, Mapping) and not x:
            raise EdistillError(f"{self.spec}: {which} is a table of nothing. Return (x, y), or x.")
        if isinstance(x, tuple | list):
            raise EdistillError(
                f"{self.spec}: {which} is a {type(x).__name__} of {len(x)}. Return (x, y), or x, where x is one array."
            )
        return x, y


def _fixed(item: Item) -> tuple[Any, ...]:
    """The kind and shape that all rows of a data set must share.

    Networks take batches, so only pixels, which are resized, may differ in size.
    """
    if item.kind == "several":
        return tuple((name, *_fixed(one)) for name, one in apart(item).items())
    return (item.kind, None if item.kind == "pixels" else item.x.shape)


def _shown(fixed: tuple[Any, ...]) -> str:
    if isinstance(fixed[0], tuple):
        return ", ".join(f"{name} of {_shown(rest)}" for name, *rest in fixed)
    kind, shape = fixed
    return f"{kind} of shape {shape or '(H, W, C)'}"


def claims(source: str) -> bool:
    return is_factory(source) and not there(source)


def load(entry: Entry, task: type[Task]) -> Source:
    entry.refuse_names()
    return Factory(entry.source, task)


def _again(spec: str, task: str) -> Factory:
    return Factory(spec, open_task(task))


def _as_array(value: Any, named: str) -> Array:
    """An array from an array, a PIL image, a number, a list, or a torch tensor."""
    if isinstance(value, Image.Image):
        try:
            value = in_eight_bits(value)
        except ValueError as error:
            raise EdistillError(f"{named} is an image, and {error}. Return its array, uint8 or float.") from error
        return np.asarray(value if value.mode in ("L", "RGB") else as_color(value))
    try:
        for step in ("detach", "cpu", "numpy"):  # methods of a tensor; torch itself is not imported
            if not isinstance(value, np.ndarray) and hasattr(value, step):
                value = getattr(value, step)()
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise EdistillError(
            f"{named} is a {type(value).__name__} that makes no array: {error}. Return NumPy arrays."
        ) from error
