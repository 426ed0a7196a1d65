"""What the library `datasets` records about the columns of a data set: which hold pictures, and the class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ensemble_distill.data.columns import Columns
from ensemble_distill.errors import EdistillError, first_few


@dataclass(frozen=True)
class Features:
    """The recorded columns of a data set.

    Attributes:
        told: the type of each column, by name, in the order of the file.
        classes: the class names of each column that holds class numbers.
    """

    told: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Any, named: str) -> Features:
        """The columns in a `dataset_info.json` or in the metadata of a shard.

        Raises:
            EdistillError: the record has an unknown form.
        """
        found = record.get("features") if isinstance(record, dict) else None
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise EdistillError(f"{named} names no features, which is how datasets says its columns. Save it again.")
        told: dict[str, str] = {}
        classes: dict[str, tuple[str, ...]] = {}
        for name, feature in found.items():
            kind = feature.get("_type") if isinstance(feature, dict) else None
            told[name] = kind if isinstance(kind, str) else "nested"
            names = feature.get("names") if kind == "ClassLabel" else None
            if names is not None:
                if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
                    raise EdistillError(f"{named}: the classes of {name} are {names!r}, and no names. Save it again.")
                if twice := next((one for one in names if names.count(one) > 1), None):
                    raise EdistillError(
                        f"{named}: two classes of {name} are called {twice!r}. Give each a name of its own, with "
                        "cast_column, and save it again."
                    )
                classes[name] = tuple(names)
        return cls(told, classes)

    @property
    def pictures(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.told.items() if kind == "Image")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.told.items() if kind == "ClassLabel")

    def settled(self, declared: Columns | None, named: str) -> Columns:
        """The declared columns; if none are declared, the one column of pictures, and that of classes if there is one.

        A single label column without declared classes gets the recorded class names.

        Raises:
            EdistillError: nothing is declared, and there is not exactly one column of pictures, or there are several of
                classes.
        """
        if declared is None:
            if len(self.pictures) != 1 or len(self.labels) > 1:
                raise EdistillError(
                    f"{named} has the columns {first_few([f'{n} ({kind})' for n, kind in self.told.items()], 12)}, and "
                    "nothing says which of them members are given. Declare them in edistill.toml: data.columns = { "
                    "images = ..., labels = [...] }, or inputs, text or array in place of images."
                )
            declared = Columns(images=self.pictures[0], labels=self.labels)
        if declared.classes is None and len(declared.labels) == 1:
            declared = replace(declared, classes=self.classes.get(declared.labels[0]))
        return declared

    def named(self, declared: Columns) -> Mapping[str, tuple[str, ...]]:
        """The class names of those columns of class numbers that are read by name: categories, labels with classes."""
        by_name = {*declared.categories, *(declared.labels if declared.classes is not None else ())}
        return {name: names for name, names in self.classes.items() if name in by_name}
