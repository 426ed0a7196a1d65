"""An exported student that answers rows, whatever kind of file it stands in: what its card alone makes of them.

Everything needed is in the file: how pixels become its input, the class names, and what its outputs are. A kind says
how the file is read and run: `served.py` ONNX, `weights.py` safetensors, `program.py` a program of torch.
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
    """A file of an exported student. A kind opens it in its `__init__`, and says what is below.

    Attributes:
        path: the file.
        card: what it says of itself.
        runtime: what runs it, for messages.
        config: what its run says of the student, a `StudentConfig`; None for a file that says no more than its card.
    """

    path: Path
    card: Card
    runtime: str
    config: Any = None

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The names of what it says."""

    @property
    @abstractmethod
    def heads(self) -> int:
        """How many heads it tells of; 1 where it tells of none."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """Rows of a batch that memory is sure to hold."""

    @abstractmethod
    def run(self, x: NDArray[Any]) -> Outputs:
        """Named outputs for preprocessed inputs (B, *shape), float32, or int64 ids; each stands by itself, and a state
        begins anew. Of positions those that the task tells.

        Raises:
            EdistillError: it fails on them, or gives outputs of another shape than its rows and classes have.
        """

    def module(self, trust: Trust = NOTHING) -> Any:
        """What torch runs of it, in eval mode on the CPU; None where another runtime does.

        Args:
            trust: whether code that the file names may run.
        """
        return None

    @property
    def reading(self) -> Reading | None:
        """How a text becomes its rows; None where those are no tokens."""
        task = self.card.task
        if not task.of_tokens:
            return None
        window = task.shape[0]
        unit = getattr(task, "token_unit", None) or "word"
        return Reading(unit, window, self.card.shape[0] - window, known=task.names, short=True)

    def ends(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each output that is read."""
        task = self.card.task
        return {**task.served(rows), **dict.fromkeys(UNCERTAINTIES, (rows, *task.shape[:-1]))}

    def checked(self, found: Outputs, rows: int) -> Outputs:
        """What it says of so many rows. Raises EdistillError where that has not the shape of rows and classes."""
        for name, shape in self.ends(rows).items():
            if name in found and found[name].shape != shape:
                raise self.other(f"of {rows} rows it gives {name} of shape {found[name].shape}, and not {shape}")
        return found

    def other(self, told: str) -> EdistillError:
        """What is told of a file that edistill does not write so."""
        return EdistillError(
            f"{self.path} is not as edistill writes it: {told}. Export the run again: {export_again(self.path)}."
        )

    def predict(self, source: Source, batch_size: int | None = None) -> Iterator[tuple[range, Outputs]]:
        """Rows of a source and their outputs, a batch at a time.

        Args:
            batch_size: rows of a batch; None for `at_once`.

        Raises:
            EdistillError: the rows are not what the student takes.
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
        """Which columns of a table it takes: those that it was trained on, and of a file that does not say them those
        that are declared.

        Raises:
            EdistillError: others are declared.
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
        """The arrays of a row that it takes, as the data calls them; none where a row is one."""
        encoding = self.card.encoding
        return tuple(part.name for part in encoding.parts) if isinstance(encoding, Several) else ()

    def _refuse_single_texts(self, source: Source) -> None:
        """Refuse lines, a text each, where the student was trained on pairs."""
        trained = self.card.columns
        if trained is not None and len(trained.texts) == 2 and not of_pairs(source):
            raise EdistillError(
                f"{self.path} takes pairs of texts, and the input holds a text a row. Give a table with the columns "
                f"{' and '.join(trained.texts)}."
            )

    def _refuse_other_features(self, given: tuple[str, ...] | None) -> None:
        """Refuse a table of other columns, or in another order, than the student was trained on."""
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
        """Image files decode to color; a student of gray arrays sees them in gray."""
        if item.kind == "pixels" and self.card.shape[0] == 1:
            return replace(item, x=as_gray(item.x))
        return item
