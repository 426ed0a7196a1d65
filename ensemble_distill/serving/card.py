"""The card of an exported file, stored in its metadata, and the checks that refuse an invalid one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import (
    RANKS,
    AnyPreprocessing,
    InputColumns,
    Kind,
    MadeFrom,
    Member,
    Named,
    Preprocessing,
    Several,
    Size,
    Tokenization,
    named_in,
)
from ensemble_distill.runs.exports import ONNX_PREFIX
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runtime.contents import gathered, scattered
from ensemble_distill.runtime.jsons import line_of_json, parse_json
from ensemble_distill.runtime.records import GIVEN, parsed
from ensemble_distill.runtime.seals import ONNX_KEY
from ensemble_distill.tasks import Task, task_from_json
from ensemble_distill.tasks.reference import Reference

Precision = Literal["float32", "float16", "int8"]
REQUIRED = ("task", "method", "version", "classes", "kind", "shape", "preprocessing", "members")


@dataclass(frozen=True)
class Card:
    """What an exported file records about its student; in ONNX, the `metadata_props`.

    Attributes:
        task: what the student predicts for a row.
        method, version: the method that trained it, and the edistill version that wrote the file.
        kind, shape, preprocessing: those of its input; see `Item` and `Preprocessing`.
        members: the ensemble it stands for.
        made_from: the weights and the calibration in the file; None if it does not record them.
        features: the names of a row's numbers; None unless it was trained on tables.
        columns: the columns that make a row of a table; None without tables, and before version 0.3.
        reference: statistics of calibration rows; None without any.
        precision: that of all layers but the last; outputs are always float32.
        input: "uint8" if the graph takes pixels (B, H, W, C) from 0 to 255 and normalizes them itself.
        price: how it differs from the float32 file; see `Price.to_metadata`.
        average, weights: how its heads are pooled, as in `Architecture`; not recorded before version 0.3.
    """

    task: Annotated[Task, GIVEN]
    method: str
    version: str
    kind: Kind
    shape: tuple[Size, ...]
    preprocessing: AnyPreprocessing | None
    members: tuple[Member, ...]
    made_from: MadeFrom | None = None
    features: tuple[str, ...] | None = None
    columns: InputColumns | None = None
    reference: Reference | None = None
    average: Literal["probabilities", "logits"] = "probabilities"
    precision: Precision = "float32"
    input: Literal["float32", "uint8"] = "float32"
    price: Mapping[str, Any] | None = None
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for contradictions that no export writes."""
        self.task.refuse_others(self.members)
        if len(self.shape) != RANKS[self.kind]:
            raise ValueError(f"its rows are {self.kind} of shape {self.shape}")
        if (self.kind == "tokens") != self.task.of_tokens:
            raise ValueError(f"its rows are {self.kind}, and its task is {self.task.key}")
        if self.columns is not None:
            kinds = {"images": "pixels", "text": "text", "inputs": "features", "array": self.kind}
            made = kinds[self.columns.parts[0]] if len(self.columns.parts) == 1 else "several"
            if made != self.kind:
                raise ValueError(f"its rows are {self.kind}, and its columns make {made}: {self.columns.told}")
        if self.columns is not None and self.columns.features != self.features:
            raise ValueError(f"its columns make {self.columns.features}, and its features are {self.features}")
        if self.weights is not None and (len(self.weights) != len(self.members) or not any(self.weights)):
            raise ValueError(f"weights are {self.weights}, and there are {len(self.members)} members")
        if self.input == "uint8" and self.kind != "pixels":
            raise ValueError(f"its input is uint8, and its rows are {self.kind}")
        if self.reference is not None:
            self.reference.refuse_others(self.task)
        size = self.preprocessing.size if isinstance(self.preprocessing, Preprocessing) else None
        if self.kind == "pixels" and size != self.shape[1:]:
            raise ValueError(f"its preprocessing makes {size} of pixels, and its shape is {self.shape}")
        by_kind = {"text": Tokenization, "several": Several}
        if self.encoding is not None and type(self.encoding) is not by_kind.get(self.kind):
            raise ValueError(f"its rows are {self.kind}, and its preprocessing is of others")
        encoded = None if self.encoding is None else self.encoding.shape
        if self.kind in by_kind and encoded != self.shape:
            raise ValueError(f"its preprocessing makes {encoded} of {self.kind}, and its shape is {self.shape}")

    @property
    def encoding(self) -> Named | None:
        """How texts or several arrays become its input; None for rows of one array."""
        return named_in(self.preprocessing)

    @property
    def ids(self) -> bool:
        """Whether its input consists of integer ids."""
        return self.kind in ("tokens", "text")

    def to_metadata(self) -> dict[str, str]:
        """A JSON value per key, since ONNX metadata are strings."""
        task = self.task.to_json()
        record = {
            "task": task.pop("task"),
            "method": self.method,
            "version": self.version,
            **task,
            "kind": self.kind,
            "shape": list(self.shape),
            "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
            "members": [member.to_json() for member in self.members],
            **({} if self.made_from is None else {"made_from": self.made_from.to_json()}),
            **({} if self.features is None else {"features": list(self.features)}),
            **({} if self.columns is None else {"columns": self.columns.to_json()}),
            **({} if self.reference is None else {"reference": self.reference.to_json()}),
            **({} if self.precision == "float32" else {"precision": self.precision}),
            **({} if self.input == "float32" else {"input": self.input}),
            **({} if self.price is None else {"price": dict(self.price)}),
            **({} if self.average == "probabilities" else {"average": self.average}),
            **({} if self.weights is None else {"weights": list(self.weights)}),
        }
        return {f"{ONNX_PREFIX}{name}": line_of_json(value) for name, value in gathered(record).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], named: Path) -> Card:
        """The card in a file's metadata.

        Raises:
            EdistillError: edistill did not write the file, or its metadata are invalid.
        """
        record: dict[str, Any] = {}
        try:
            for name, value in metadata.items():
                if name.startswith(ONNX_PREFIX) and name != ONNX_KEY:
                    record[name.removeprefix(ONNX_PREFIX)] = parse_json(value)
        except ValueError as error:
            raise damaged(named, f"{name} is not JSON: {error}") from None
        if "task" not in record:
            raise EdistillError(
                f"{named} has no edistill metadata, so its preprocessing and classes are unknown. Give a file that "
                "edistill export --onnx wrote."
            )
        if lacking := [name for name in REQUIRED if name not in record]:
            raise EdistillError(
                f"{named} was written by edistill {record.get('version', 'of another version')}, without "
                f"{', '.join(lacking)}. Export the run again: {export_again(named)}."
            )
        try:
            record = scattered(record)
            task = task_from_json(record)
            # class names need not be valid Unicode, but everything else must be
            return parsed(cls, {**record, "classes": None}, task=task)
        except (ValueError, TypeError) as error:
            raise damaged(named, str(error).rstrip(".")) from None


def damaged(named: Path, told: str) -> EdistillError:
    """The error for a file with invalid metadata."""
    return EdistillError(
        f"{named} is damaged, or was not written by edistill: in its metadata, {told}. Export the run again: "
        f"{export_again(named)}."
    )
