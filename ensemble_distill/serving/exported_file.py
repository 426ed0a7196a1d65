"""An exported student that predicts rows, whatever the kind of its file.

Everything needed is in the file: the preprocessing, the class names, and the meaning of its outputs. A subclass reads
and runs one kind of file: `served.py` ONNX, `weights.py` safetensors, `program.py` a torch program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.data.columns import Columns, Declared
from ensemble_distill.data.rendering import as_gray
from ensemble_distill.data.rows import plain_input
from ensemble_distill.data.several import held, of_pairs
from ensemble_distill.data.source import Item, Source
from ensemble_distill.data.vocabulary import Reading
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import Several
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.serving.card import Card
from ensemble_distill.tasks.figures import UNCERTAINTIES

Outputs = Mapping[str, NDArray[np.float32]]


class ExportedFile(ABC):
    """The file of an exported student; a subclass opens it in `__init__` and defines the abstract members.

    Attributes:
        path: the file.
        card: what the file records about the student.
        runtime: the library that runs it, for messages.
        config: the `StudentConfig` of its run; None for a file that holds only the card.
    """

    path: Path
    card: Card
    runtime: str
    config: Any = None

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""

    @property
    @abstractmethod
    def heads(self) -> int:
        """The number of heads among its outputs; 1 if they show none."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """Rows of a batch that surely fits into memory."""

    @abstractmethod
    def run(self, x: NDArray[Any]) -> Outputs:
        """Named outputs for preprocessed inputs (B, *shape), float32 or int64 ids.

        Rows are independent, and a recurrent state starts fresh. For sequences, only the task's positions are returned.

        Raises:
            EdistillError: it fails on the rows, or an output does not have the shape that rows and classes imply.
        """

    def module(self, trust: Trust = NOTHING) -> Any:
        """Its torch module, in eval mode on the CPU; None if another library runs it.

        Args:
            trust: whether code that the file names may be executed.
        """
        return None

    @property
    def reading(self) -> Reading | None:
        """How a text becomes rows of tokens; None if the task has no tokens."""
        task = self.card.task
        if not task.of_tokens:
            return None
        window = task.shape[0]
        unit = getattr(task, "token_unit", None) or "word"
        return Reading(unit, window, self.card.shape[0] - window, known=task.names, short=True)

    def ends(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs that are read, by name."""
        task = self.card.task
        return {**task.served(rows), **dict.fromkeys(UNCERTAINTIES, (rows, *task.shape[:-1]))}

    def checked(self, found: Outputs, rows: int) -> Outputs:
        """The outputs of `rows` rows; raises EdistillError if their shapes do not match rows and classes."""
        for name, shape in self.ends(rows).items():
            if name in found and found[name].shape != shape:
                raise self.other(f"of {rows} rows it gives {name} of shape {found[name].shape}, and not {shape}")
        return found

    def other(self, told: str) -> EdistillError:
        """The error for a file that differs from what edistill writes."""
        return EdistillError(
            f"{self.path} is not as edistill writes it: {told}. Export the run again: {export_again(self.path)}."
        )

    def predict(self, source: Source, batch_size: int | None = None) -> Iterator[tuple[range, Outputs]]:
        """Yield the rows of a source and their outputs, a batch at a time.

        Args:
            batch_size: rows per batch; None for `at_once`.

        Raises:
            EdistillError: the student does not take such rows.
        """
        if source.kind != self.card.kind:
            encoding = self.card.encoding
            takes: str = self.card.kind
            if isinstance(encoding, Several):
                takes = " and ".join(f"{part.name} ({part.kind})" for part in encoding.parts)
            raise EdistillError(
                f"{self.path} takes {takes}, but the input holds {held(source)}. Give rows like those it was trained "
                "on."
            )
        self._refuse_single_texts(source)
        self._refuse_other_features(getattr(source, "features", None))
        size = batch_size or self.at_once
        for start in range(0, len(source), size):
            rows = range(start, min(start + size, len(source)))
            items = [self._as_trained(source.item(row)) for row in rows]
            x = np.stack([plain_input(item, self.card.preprocessing) for item in items])
            if x.shape[1:] != self.card.shape:
                raise EdistillError(
                    f"{self.path} takes inputs of shape {self.card.shape}, but {source.name(start)} is {x.shape[1:]}. "
                    "Give rows like those it was trained on."
                )
            yield rows, self.run(x)

    def columns(self, declared: Declared | None) -> Declared | None:
        """The columns of a table that it takes: those it was trained on, else, if the file does not record them,
        `declared`.

        Raises:
            EdistillError: `declared` differs from what it was trained on.
        """
        trained = self.card.columns
        if trained is None:
            return declared
        if declared is not None and (given := Columns.of(declared).asked) != trained:
            self._refuse_other_features(given.features)
            raise EdistillError(
                f"{self.path} was trained on {trained.told}, and data.columns says {given.told}. Set it as it was."
            )
        return Columns.trained(trained, str(self.path))

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the arrays that make up a row; empty if a row is one array."""
        encoding = self.card.encoding
        return tuple(part.name for part in encoding.parts) if isinstance(encoding, Several) else ()

    def _refuse_single_texts(self, source: Source) -> None:
        """Refuse rows of one text if the student was trained on pairs."""
        trained = self.card.columns
        if trained is not None and len(trained.texts) == 2 and not of_pairs(source):
            raise EdistillError(
                f"{self.path} takes pairs of texts, and the input holds a text a row. Give a table with the columns "
                f"{' and '.join(trained.texts)}."
            )

    def _refuse_other_features(self, given: tuple[str, ...] | None) -> None:
        """Refuse a table whose columns differ from those of the training, in name or order."""
        trained = self.card.features
        if trained is None or given is None or given == trained:
            return
        pairs = list(zip_longest(trained, given))
        at = next(place for place, (one, other) in enumerate(pairs) if one != other)
        raise EdistillError(
            f"{self.path} was trained on {first_few(trained, 8)}, and the table gives {first_few(given, 8)}: number "
            f"{at} of a row is {pairs[at][0] or 'none'} there, and {pairs[at][1] or 'none'} here. Set data.columns as "
            "it was in the training."
        )

    def _as_trained(self, item: Item) -> Item:
        """Convert images to gray for a student of gray images, since image files decode to color."""
        if item.kind == "pixels" and self.card.shape[0] == 1:
            return replace(item, x=as_gray(item.x))
        return item
