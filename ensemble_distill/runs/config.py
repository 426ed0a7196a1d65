"""`config.json` of a run: its student's architecture and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ensemble_distill import __version__
from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.facts import InputColumns, Member
from ensemble_distill.runs.folder import CONFIG, content_of, train_again
from ensemble_distill.runtime.contents import gathered, scattered
from ensemble_distill.runtime.records import parsed
from ensemble_distill.runtime.seals import WRITTEN_BY, parse_sealed_json, sealed_json
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.tasks import task_from_json

OF_WEIGHTS = "sha256_of_weights"  # key of the sha256 of the student.safetensors that the config belongs to


@dataclass(frozen=True)
class Provenance:
    """Where a student came from.

    Attributes:
        method, options, source: the method that trained it; see `Method.source`.
        members: the ensemble; with one head per member, head m imitates member m.
        trained_on: the digest of each split it was trained on, with plateau also of the validation rows, on which the
            learning rate depends.
        versions: of the libraries it was trained with.
        still_falling: the share of the loss's fall that came late, if the training ended too early; see
            `training.convergence`. None if it did not, and for runs before version 0.3.
        features: the names of a row's numbers, if it was trained on tables; see `InputColumns.features`.
        columns: the columns that rows are made of, also for pictures named by a table; None for runs before version
            0.3.
        answers: what the trained student returned for a fixed input; see `students.same_function`. None before the
            training has ended, for students without such answers, and for runs before version 0.3.
    """

    method: str
    options: Mapping[str, Any]
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    source: str = ""
    trained_on: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    still_falling: float | None = None
    features: tuple[str, ...] | None = None
    columns: InputColumns | None = None
    answers: Annotated[tuple[float, ...], Field(min_length=1)] | None = None


@dataclass(frozen=True)
class StudentConfig:
    """Everything about a student but its weights."""

    architecture: Architecture
    provenance: Provenance

    def __post_init__(self) -> None:
        """Raise ValueError if the architecture contradicts the members."""
        members, weights = self.provenance.members, self.architecture.weights
        if weights is not None and len(weights) != len(members):
            raise ValueError(f"there are {len(weights)} weights, and {len(members)} members")
        self.architecture.task.refuse_others(members)

    def ended(self, still_falling: float | None) -> StudentConfig:
        """The config once the training has ended; see `Provenance.still_falling`."""
        return replace(self, provenance=replace(self.provenance, still_falling=still_falling))

    def answering(self, answers: tuple[float, ...] | None) -> StudentConfig:
        """The config of a student that returns these numbers for a fixed input; see `Provenance.answers`."""
        return replace(self, provenance=replace(self.provenance, answers=answers))

    def to_json(self) -> dict[str, Any]:
        architecture, origin = self.architecture, self.provenance
        task = architecture.task.to_json()
        weights = architecture.weights
        record = {
            WRITTEN_BY: __version__,
            "task": task.pop("task"),
            "method": {"name": origin.method, "options": dict(origin.options)}
            | ({"source": origin.source} if origin.source else {}),
            "student": architecture.body_json(),
            "input": architecture.input_json(),
            **task,
            "average": architecture.average,
            "weights": None if weights is None else list(weights),
            "members": [member.to_json() for member in origin.members],
            "trained_on": dict(origin.trained_on),
            "versions": dict(origin.versions),
            **({} if origin.still_falling is None else {"still_falling": origin.still_falling}),
            **({} if origin.features is None else {"features": list(origin.features)}),
            **({} if origin.columns is None else {"columns": origin.columns.to_json()}),
            **({} if origin.answers is None else {"answers": list(origin.answers)}),
        }
        return gathered(record)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StudentConfig:
        """The inverse of `to_json`, for this version and earlier ones; raises ValueError and others for any other
        record."""
        record = scattered(record)
        pooling = {key: record[key] for key in ("average", "weights")}
        student = {**record["student"], **record["input"], **pooling}
        method = record["method"]
        origin = {key: record[key] for key in ("members", "trained_on", "versions")}
        origin |= {key: record.get(key) for key in ("still_falling", "features", "columns", "answers")}
        origin |= {"method": method["name"], "options": method["options"], "source": method.get("source", "")}
        return cls(Architecture.from_json(student, task_from_json(record)), parsed(Provenance, origin))

    @classmethod
    def load(cls, folder: Path) -> StudentConfig:
        """The config of the run in a folder; raises EdistillError if it is damaged."""
        return cls.parse(content_of(folder / CONFIG) or b"", folder / CONFIG)[0]

    @classmethod
    def parse(cls, content: bytes, named: Path) -> tuple[StudentConfig, str | None, bool]:
        """The config in the bytes of a `config.json`, the sha256 of its weights, and whether the bytes are sealed.

        The sha256 is None before the training has ended, and in files of version 0.1.0.

        Raises:
            EdistillError: the bytes are damaged.
        """
        try:
            record, sealed = parse_sealed_json(content)
            return cls.from_json(record), record.get(OF_WEIGHTS), sealed
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, EdistillError) as error:
            raise EdistillError(
                f"{named} is damaged ({quoted(error)}). Restore it, or run {train_again(named.parent)}."
            ) from None

    def content(self, weights: str | None = None) -> bytes:
        """The bytes of a `config.json`, with the sha256 of the weights it belongs to once they exist."""
        return sealed_json(self.to_json() | ({} if weights is None else {OF_WEIGHTS: weights}))
