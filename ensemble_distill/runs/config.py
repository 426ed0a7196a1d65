"""What a trained student is, but for its weights: `config.json` of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ensemble_distill import __version__
from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.predictive import family_from_json, family_to_json
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.predictive.protocol import Average, Family
from ensemble_distill.runs.folder import CONFIG, content_of, train_again
from ensemble_distill.runtime.seals import parse_sealed_json, sealed_json
from ensemble_distill.students.bodies import BodyFactory, build_bodies, each, feature_count
from ensemble_distill.students.factored import factor
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.last_stage import HeadStack, LastStage, apart
from ensemble_distill.students.student import Form, Student

OF_WEIGHTS = "sha256_of_weights"  # in it: of the student.safetensors that it belongs to
LARGEST_INPUT = 2**28  # numbers in one example
FETCHING = ("pretrained", "checkpoint_path")  # arguments by which timm loads weights


def without_fetching(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A timm model's arguments, for one whose weights are at hand: those that a file names would be fetched, or
    unpickled, which older versions of timm do with all the code in them."""
    return {name: value for name, value in kwargs.items() if name not in FETCHING}


@dataclass(frozen=True)
class StudentConfig:
    """Everything but the weights; `config.json`.

    Attributes:
        task: "classification" or "regression".
        method, options, source: what trained it; see `Method.source`.
        model, kwargs: its body; a file is written relative to the run folder.
        bodies: how many of them stand side by side; 1 is the body itself.
        compressed: of each of them the layers that are factors, and their ranks; none for whole bodies.
        own_body: whether each head reads the features of its own body alone.
        hidden, heads: hidden sizes of each head, and how many heads there are.
        last_stage: where heads begin that have their own copy of the body's last stage; None for heads on all of it.
        form: whether they are heads on one body, or share body and head but for rank-one factors.
        family: what the numbers of a head mean.
        kind, shape, preprocessing: its input: pixels, tensor or features; one example's shape; for pixels how
            they become it.
        classes: names, in the order of the logits; none for regression.
        members: the ensemble; with one head per member, head m imitates member m.
        average, weights: how the heads pool.
        trained_on: the digest of each split it was trained on.
        versions: of the libraries it was trained with.
    """

    task: str
    method: str
    options: Mapping[str, Any]
    model: str
    kwargs: Mapping[str, Any]
    hidden: tuple[int, ...]
    heads: int
    form: Form
    family: Family
    kind: str
    shape: tuple[int, ...]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    members: tuple[Member, ...]
    average: Average = "probabilities"
    weights: tuple[float, ...] | None = None
    trained_on: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    bodies: int = 1
    source: str = ""
    last_stage: LastStage | None = None
    compressed: tuple[Mapping[str, int], ...] = ()
    own_body: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what no training writes: a damaged file would become a student that is not the one."""
        sizes = (self.heads, self.bodies, *self.hidden, *self.shape)
        weights = self.weights
        for what, holds in (
            ("sizes are whole numbers above 0", all(type(size) is int and size > 0 for size in sizes)),
            (f"an input has at most {LARGEST_INPUT} numbers", _product(self.shape) <= LARGEST_INPUT),
            ("kwargs is a table", isinstance(self.kwargs, Mapping)),
            ("model is a text", isinstance(self.model, str)),
            ("there are members", len(self.members) > 0),
            ("average is probabilities or logits", self.average in get_args(Average)),
            ("form is heads or rank-one", self.form in get_args(Form)),
            (
                "there is a weight above 0 a member",
                weights is None
                or (
                    len(weights) == len(self.members)
                    and all(isinstance(w, float | int) and 0 <= w < math.inf for w in weights)
                    and any(weights)
                ),
            ),
            ("each body has its own ranks", len(self.compressed) in (0, self.bodies)),
            (
                "ranks are whole numbers above 0",
                all(type(rank) is int and rank > 0 for one in self.compressed for rank in one.values()),
            ),
            (
                "heads with their own bodies have one each",
                self.own_body is False or (self.own_body is True and self.bodies == self.heads),
            ),
            ("task is classification or regression", self.task in ("classification", "regression")),
            ("there are classes, by name", len(self.classes) > 0 or self.task == "regression"),
            ("classes are texts, each once", len({c for c in self.classes if isinstance(c, str)}) == len(self.classes)),
            (
                "members order as many classes",
                all(m.class_order is None or len(m.class_order) == len(self.classes) for m in self.members),
            ),
            ("a Dirichlet has one head", not isinstance(self.family, DirichletFamily) or self.heads == 1),
            (
                "options, trained_on and versions are tables",
                all(isinstance(table, Mapping) for table in (self.options, self.trained_on, self.versions)),
            ),
        ):
            if not holds:
                raise ValueError(f"it does not hold that {what}")

    def to_json(self) -> dict[str, Any]:
        return {
            "edistill": __version__,
            "task": self.task,
            "method": {"name": self.method, "options": dict(self.options)}
            | ({"source": self.source} if self.source else {}),
            "student": {
                "model": self.model,
                "kwargs": dict(self.kwargs),
                "bodies": self.bodies,
                "hidden": list(self.hidden),
                "heads": self.heads,
                "form": self.form,
                "family": family_to_json(self.family),
            }
            | ({"last_stage": self.last_stage.to_json()} if self.last_stage else {})
            | ({"compressed": [dict(ranks) for ranks in self.compressed]} if self.compressed else {})
            | ({"own_body": True} if self.own_body else {}),
            "input": {
                "kind": self.kind,
                "shape": list(self.shape),
                "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
            },
            "classes": list(self.classes),
            "average": self.average,
            "weights": None if self.weights is None else list(self.weights),
            "members": [member.to_json() for member in self.members],
            "trained_on": dict(self.trained_on),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StudentConfig:
        student, seen, method = record["student"], record["input"], record["method"]
        preprocessing, weights = seen["preprocessing"], record["weights"]
        return cls(
            task=record["task"],
            method=method["name"],
            options=method["options"],
            model=student["model"],
            kwargs=student["kwargs"],
            hidden=tuple(student["hidden"]),
            heads=student["heads"],
            form=student["form"],
            family=family_from_json(student["family"]),
            kind=seen["kind"],
            shape=tuple(seen["shape"]),
            preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
            classes=tuple(record["classes"]),
            members=tuple(Member.from_json(member) for member in record["members"]),
            average=record["average"],
            weights=None if weights is None else tuple(weights),
            trained_on=record["trained_on"],
            versions=record["versions"],
            bodies=student.get("bodies", 1),  # a run may be older than this
            source=method.get("source", ""),
            last_stage=None if student.get("last_stage") is None else LastStage.from_json(student["last_stage"]),
            compressed=tuple(dict(ranks) for ranks in student.get("compressed", ())),
            own_body=student.get("own_body", False),
        )

    @classmethod
    def load(cls, folder: Path) -> StudentConfig:
        """What a run's `config.json` says. Raises EdistillError when it is damaged."""
        return cls.parse(content_of(folder / CONFIG) or b"", folder / CONFIG)[0]

    @classmethod
    def parse(cls, content: bytes, named: Path) -> tuple[StudentConfig, str | None, bool]:
        """What the bytes of a `config.json` say, the sha256 of its weights, and whether the bytes are sealed.

        There is no such sha256 before the training has ended, nor in files of version 0.1.0.

        Raises:
            EdistillError: they are damaged.
        """
        try:
            record, sealed = parse_sealed_json(content)
            return cls.from_json(record), record.get(OF_WEIGHTS), sealed
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, EdistillError) as error:
            raise EdistillError(
                f"{named} is damaged ({quoted(error)}). Restore it, or run {train_again(named.parent)}."
            ) from None

    def content(self, weights: str | None = None) -> bytes:
        """The bytes of its `config.json`, which names the sha256 of the weights it belongs to, once there are any."""
        return sealed_json(self.to_json() | ({} if weights is None else {OF_WEIGHTS: weights}))

    def build(self, factory: BodyFactory | None = None) -> Student:
        """A student whose weights are to be loaded; none are fetched for a pretrained body."""
        kwargs = dict(self.kwargs)
        if factory is None and not self.names_code:
            kwargs = without_fetching(kwargs)
        body = build_bodies(self.bodies, self.model, kwargs, self.shape, factory)
        for one, ranks in zip(each(body), self.compressed, strict=False):
            factor(one, ranks)
        features = feature_count(body, self.shape, self.model)
        return self.around(body, features).formed(self.form, self.heads)

    @property
    def names_code(self) -> bool:
        """Whether its body is made by a function, and not by timm."""
        return ":" in self.model

    def refuse_larger_than(self, numbers: int) -> None:
        """Raise ValueError where a student of this configuration would need more weights than there are `numbers`: it
        would be allocated before the two are compared."""
        widths = (*self.hidden, self.family.width(len(self.classes)))
        ranks = (rank for one in self.compressed for rank in one.values())
        counts = (self.heads, self.bodies, sum(a * b for a, b in pairwise(widths)), *ranks)
        if max(counts) > numbers:
            raise ValueError(f"it wants {max(counts)} weights at least, and there are {numbers}")

    def around(self, body: torch.nn.Module, features: int) -> Student:
        """A student of this configuration on a given body, with the one fresh head that training starts from.

        Where each head reads its own body it runs once there are as many heads as bodies.
        """
        outputs = self.family.width(len(self.classes))
        heads: HeadStack
        if self.last_stage is None:
            heads = Heads(
                1, features // self.bodies if self.own_body else features, self.hidden, outputs, self.own_body
            )
        else:
            body, heads = apart(body, self.last_stage, self.shape, outputs)
        return Student(
            body,
            heads,
            self.family,
            self.pooling(len(self.members)),
            self.average,
        )

    def pooling(self, heads: int) -> Tensor | None:
        """The weights of that many heads; None where they are equal or do not stand for members."""
        if self.weights is None or heads != len(self.weights):
            return None
        weights = torch.tensor(self.weights, dtype=torch.float64)
        weights = weights / weights.max()  # first, since their sum may be beyond any float
        return (weights / weights.sum()).float()


def _product(sizes: tuple[Any, ...]) -> int:
    return math.prod(size for size in sizes if type(size) is int)
