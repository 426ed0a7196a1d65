"""Running an exported ONNX student on inputs, without torch.

Everything needed is in the file: how pixels become its input, the class names, and what its outputs are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from ensemble_distill.data.source import Item, Source
from ensemble_distill.data.views import open_view
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.names import harmless_json

BATCH = 64
COVERED = 1.959963984540054  # standard deviations about the mean that hold 95 % of a normal distribution
UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")

Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Card:
    """What an exported file says of itself, as its ONNX `metadata_props`.

    Attributes:
        task, method, version: "classification" or "regression"; the method; the edistill that wrote it.
        classes: names, in the order of the logits; none for regression.
        kind, shape, preprocessing: of its input; see `Item` and `Preprocessing`.
        members: the ensemble it stands for.
    """

    task: str
    method: str
    version: str
    classes: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    preprocessing: Preprocessing | None
    members: tuple[Member, ...]

    def to_metadata(self) -> dict[str, str]:
        """One JSON value a key, since ONNX metadata are strings."""
        record = {
            "task": self.task,
            "method": self.method,
            "version": self.version,
            "classes": list(self.classes),
            "kind": self.kind,
            "shape": list(self.shape),
            "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
            "members": [member.to_json() for member in self.members],
        }
        return {
            f"edistill.{name}": harmless_json(json.dumps(value, ensure_ascii=False)) for name, value in record.items()
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], named: Path) -> Card:
        """Raises: EdistillError when edistill did not write the file."""
        record: dict[str, Any] = {
            name.removeprefix("edistill."): json.loads(value)
            for name, value in metadata.items()
            if name.startswith("edistill.")
        }
        if "task" not in record:
            raise EdistillError(
                f"{named} has no edistill metadata, so its preprocessing and classes are unknown. Give a file that "
                "edistill export --onnx wrote."
            )
        lacking = [field.name for field in fields(cls) if field.name not in record]
        if lacking:
            raise EdistillError(
                f"{named} was written by edistill {record.get('version', 'of another version')}, without "
                f"{', '.join(lacking)}. Export the run again: edistill export --onnx."
            )
        preprocessing = record["preprocessing"]
        return cls(
            task=record["task"],
            method=record["method"],
            version=record["version"],
            classes=tuple(record["classes"]),
            kind=record["kind"],
            shape=tuple(record["shape"]),
            preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
            members=tuple(Member.from_json(member) for member in record["members"]),
        )


class Served:
    """An exported student, ready to run."""

    def __init__(self, path: Path) -> None:
        """Raises: EdistillError when there is no such file, or it is not an ONNX file of ours."""
        if (path / "export" / "model.onnx").is_file():  # a run stands for its export
            path = path / "export" / "model.onnx"
        if not path.is_file():
            raise EdistillError(f"There is no {path}. Run edistill export --onnx, or pass --model FILE.")
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise EdistillError(f"{path} is no ONNX file that onnxruntime can run: {error}") from None
        self.path = path
        self.card = Card.from_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        self.input: str = self.session.get_inputs()[0].name
        self.outputs: tuple[str, ...] = tuple(output.name for output in self.session.get_outputs())

    def run(self, x: NDArray[np.float32]) -> Outputs:
        """Named outputs for preprocessed inputs (B, *shape), float32."""
        return dict(zip(self.outputs, self.session.run(None, {self.input: x}), strict=True))

    def predict(self, source: Source) -> Iterator[tuple[range, Outputs]]:
        """Rows of a source and their outputs, a batch at a time.

        Raises:
            EdistillError: the rows are not what the student takes.
        """
        if source.kind != self.card.kind:
            raise EdistillError(
                f"{self.path} takes {self.card.kind}, but the input holds {source.kind}. Give rows like those it was "
                "trained on."
            )
        view = open_view("none", None)
        for start in range(0, len(source), BATCH):
            rows = range(start, min(start + BATCH, len(source)))
            items = [self._as_trained(source.item(row)) for row in rows]
            x = np.stack([view.plan(0, 0, 0, 1).x([item], self.card.preprocessing) for item in items])
            if x.shape[1:] != self.card.shape:
                raise EdistillError(
                    f"{self.path} takes inputs of shape {self.card.shape}, but {source.name(start)} is {x.shape[1:]}. "
                    "Give rows like those it was trained on."
                )
            yield rows, self.run(x)

    def _as_trained(self, item: Item) -> Item:
        """Image files decode to color; a student of gray arrays sees them in gray."""
        if item.kind == "pixels" and self.card.shape[0] == 1 and item.x.shape[2] == 3:
            return replace(item, x=np.asarray(Image.fromarray(item.x).convert("L"))[..., None])
        return item


def records(served: Served, source: Source) -> Iterator[dict[str, Any]]:
    """For each row: its name, the class and its probability, or the mean and its 95 % interval; and the uncertainties
    that the student has."""
    for rows, outputs in served.predict(source):
        shown = [name for name in ("logits", "mean", *UNCERTAINTIES) if name in outputs]
        finite = np.all([np.isfinite(outputs[name]).reshape(len(rows), -1).all(axis=1) for name in shown], axis=0)
        if not finite.all():
            raise EdistillError(
                f"{source.name(rows[int(np.argmin(finite))])} gives outputs that are not finite. Check its values."
            )
        predictions = _classes(outputs, served.card.classes) if "logits" in outputs else _intervals(outputs)
        for at, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
            uncertainties = {name: float(outputs[name][at]) for name in UNCERTAINTIES if name in outputs}
            yield {"row": source.name(row), **prediction, **uncertainties}


def _classes(outputs: Outputs, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for probabilities in np.exp(outputs["logits"]):
        top = int(probabilities.argmax())
        yield {"class": classes[top], "probability": float(probabilities[top])}


def _intervals(outputs: Outputs) -> Iterator[dict[str, Any]]:
    for mean, variance in zip(outputs["mean"].tolist(), outputs["variance"].tolist(), strict=True):
        reach = COVERED * math.sqrt(variance)
        yield {"mean": mean, "lower95": mean - reach, "upper95": mean + reach}
