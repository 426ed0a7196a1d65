"""What an exported ONNX file says of itself, and what no file of ours does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from ensemble_distill.data.source import Kind
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import MadeFrom, Member, Preprocessing
from ensemble_distill.runs.exports import ONNX_PREFIX
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runtime.jsons import line_of_json, parse_json
from ensemble_distill.runtime.seals import ONNX_KEY


@dataclass(frozen=True)
class Card:
    """What an exported file says of itself, as its ONNX `metadata_props`.

    Attributes:
        task, method, version: "classification" or "regression"; the method; the edistill that wrote it.
        classes: names, in the order of the logits; none for regression.
        kind, shape, preprocessing: of its input; see `Item` and `Preprocessing`.
        members: the ensemble it stands for.
        made_from: the weights and the calibration that are in it; None where it does not say.
    """

    task: str
    method: str
    version: str
    classes: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    preprocessing: Preprocessing | None
    members: tuple[Member, ...]
    made_from: MadeFrom | None = None

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
            **({} if self.made_from is None else {"made_from": self.made_from.to_json()}),
        }
        return {f"{ONNX_PREFIX}{name}": line_of_json(value) for name, value in record.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], named: Path) -> Card:
        """Raises: EdistillError when edistill did not write the file, or it says what no file of ours does."""
        record: dict[str, Any] = {}
        try:
            for name, value in metadata.items():
                if name.startswith(ONNX_PREFIX) and name != ONNX_KEY:
                    record[name.removeprefix(ONNX_PREFIX)] = parse_json(value)
        except ValueError as error:
            raise damaged(named, f"{name} is no JSON: {error}") from None
        if "task" not in record:
            raise EdistillError(
                f"{named} has no edistill metadata, so its preprocessing and classes are unknown. Give a file that "
                "edistill export --onnx wrote."
            )
        lacking = [field.name for field in fields(cls) if field.default is MISSING and field.name not in record]
        if lacking:
            raise EdistillError(
                f"{named} was written by edistill {record.get('version', 'of another version')}, without "
                f"{', '.join(lacking)}. Export the run again: {export_again(named)}."
            )
        try:
            return cls._of(record)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, EdistillError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise damaged(named, told.rstrip(".")) from None

    @classmethod
    def _of(cls, record: Mapping[str, Any]) -> Card:
        """Raises one of many errors where a value is not of its kind."""
        for name, holds, wanted in _RULES:
            if not holds(record[name]):
                raise ValueError(f"{ONNX_PREFIX}{name} is {_short(record[name])}, and not {wanted}")
        preprocessing, made_from = record["preprocessing"], record.get("made_from")
        card = cls(
            task=record["task"],
            method=record["method"],
            version=record["version"],
            classes=tuple(record["classes"]),
            kind=record["kind"],
            shape=tuple(record["shape"]),
            preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
            members=tuple(Member.from_json(member) for member in record["members"]),
            made_from=None if made_from is None else MadeFrom.from_json(made_from),
        )
        if len(card.shape) != (1 if card.kind == "features" else 3):
            raise ValueError(f"its rows are {card.kind} of shape {card.shape}")
        if (card.task == "regression") != (not card.classes):
            raise ValueError(f"it is for {card.task} and has {len(card.classes)} classes")
        size = None if card.preprocessing is None else card.preprocessing.size
        if card.kind == "pixels" and size != card.shape[1:]:
            raise ValueError(f"its preprocessing makes {size} of pixels, and its shape is {card.shape}")
        return card


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("task", lambda value: value in ("classification", "regression"), "classification or regression"),
    ("method", lambda value: isinstance(value, str), "a text"),
    ("version", lambda value: isinstance(value, str), "a text"),
    ("classes", lambda value: _texts(value) and len(set(value)) == len(value), "a list of different texts"),
    ("kind", lambda value: value in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
    ("shape", _sizes, "a list of sizes"),
    ("preprocessing", lambda value: value is None or isinstance(value, dict), "a table or null"),
    ("members", lambda value: isinstance(value, list), "a list"),
)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def damaged(named: Path, told: str) -> EdistillError:
    """What is said of a file whose metadata no file of ours has."""
    return EdistillError(
        f"{named} is damaged, or was not written by edistill: in its metadata, {told}. Export the run again: "
        f"{export_again(named)}."
    )
