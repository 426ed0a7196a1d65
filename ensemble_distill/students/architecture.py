"""What a student is, except for its weights, and how it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import Field, PlainValidator
from torch import Tensor

from ensemble_distill.facts import AnyPreprocessing, Kind, Named, Size, named_in
from ensemble_distill.predictive import family_from_json, family_to_json
from ensemble_distill.predictive.protocol import Average, Family
from ensemble_distill.runtime.records import GIVEN, parsed
from ensemble_distill.students.bodies import BodyFactory, build_bodies, each, feature_count
from ensemble_distill.students.factored import factor
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.last_stage import HeadStack, LastStage, apart
from ensemble_distill.students.student import Form, Student
from ensemble_distill.students.tied import tied_to
from ensemble_distill.tasks import Task

LARGEST_INPUT = 2**28  # maximum numbers in one example
FETCHING = ("pretrained", "checkpoint_path")  # arguments that make timm load weights

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def without_fetching(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A timm model's arguments without those that load weights, for a model whose weights are at hand.

    Weights that a file names would be downloaded, or unpickled, which in older versions of timm runs any code in them.
    """
    return {name: value for name, value in kwargs.items() if name not in FETCHING}


@dataclass(frozen=True)
class Architecture:
    """Everything needed to turn weights into a student.

    Attributes:
        task: the kind of answer for a row.
        model, kwargs: its body; a file is written relative to the run folder.
        hidden, heads: hidden sizes of each head, and the number of heads.
        form: "heads" on one body, or "rank-one": shared body and head except for rank-one factors.
        family: what the numbers of a head mean.
        kind, shape, preprocessing: its input: the kind of rows, see `Kind`; the shape of one example; how pixels and
            texts become it.
        average, weights: how the heads are pooled, with one weight per member.
        bodies: number of bodies side by side; 1 is a plain body.
        last_stage: where heads with their own copy of the body's last stage begin; None for heads on the whole body.
        compressed: for each body its factored layers and their ranks; empty for bodies that are not compressed.
        own_body: whether each head reads the features of its own body only.
        tied: the body's embedding that is every head's output layer; None if each head has its own.
    """

    task: Annotated[Task, GIVEN]
    model: str
    kwargs: Mapping[str, Any]
    hidden: tuple[Size, ...]
    heads: Size
    form: Form
    family: Annotated[Family, PlainValidator(family_from_json)]
    kind: Kind
    shape: tuple[Size, ...]
    preprocessing: AnyPreprocessing | None
    average: Average = "probabilities"
    weights: tuple[Weight, ...] | None = None
    bodies: Size = 1
    last_stage: LastStage | None = None
    compressed: tuple[Mapping[str, Size], ...] = ()
    own_body: bool = False
    tied: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no training writes, since a damaged file would make another student."""
        if (numbers := math.prod(self.shape)) > LARGEST_INPUT:
            raise ValueError(f"an input of shape {list(self.shape)} has {numbers} numbers, and at most {LARGEST_INPUT}")
        if self.weights is not None and not any(self.weights):
            raise ValueError(f"weights are {list(self.weights)}, and none is above 0")
        if len(self.compressed) not in (0, self.bodies):
            raise ValueError(f"there are ranks of {len(self.compressed)} bodies, and {self.bodies} bodies")
        if self.own_body and self.bodies != self.heads:
            raise ValueError(f"each head has its own body, and there are {self.heads} heads and {self.bodies} bodies")
        if self.family.stands_for_all and self.heads != 1:
            raise ValueError(f"one head stands for all members, and there are {self.heads}")

    # --- on disk ------------------------------------------------------------------------------------------------

    def body_json(self) -> dict[str, Any]:
        """Body, heads and family, as in `config.json`."""
        return (
            {
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
            | ({"own_body": True} if self.own_body else {})
            | ({"tied": self.tied} if self.tied is not None else {})
        )

    def input_json(self) -> dict[str, Any]:
        """The input, as in `config.json`."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], task: Task) -> Architecture:
        """Inverse of both, from one table that also has `average` and `weights`.

        Raises:
            ValueError: the record is not one that they write.
        """
        return parsed(cls, record, task=task)

    # --- building -----------------------------------------------------------------------------------------------

    @property
    def names_code(self) -> bool:
        """Whether its body is made by a function, and not by timm or transformers."""
        return ":" in self.model

    @property
    def positions(self) -> int | None:
        """The number of positions with an answer; None if a row has one answer."""
        return self.task.shape[0] if self.kind == "tokens" else None

    @property
    def encoding(self) -> Named | None:
        """How texts or several arrays become its input; None for rows that are one array."""
        return named_in(self.preprocessing)

    @property
    def outputs(self) -> int:
        """How many numbers a head emits."""
        return self.family.width(len(self.task.names))

    def refuse_larger_than(self, numbers: int) -> None:
        """Raise ValueError if such a student needs more weights than `numbers`, before any are allocated."""
        ranks = (rank for one in self.compressed for rank in one.values())
        widths = sum(a * b for a, b in pairwise((*self.hidden, self.outputs)))
        most = max(self.heads, self.bodies, widths, *ranks)
        if most > numbers:
            raise ValueError(f"it wants {most} weights at least, and there are {numbers}")

    def build(self, factory: BodyFactory | None = None) -> Student:
        """A student whose weights are still to be loaded; a pretrained body fetches none."""
        kwargs = dict(self.kwargs)
        if factory is None and not self.names_code:
            kwargs = without_fetching(kwargs)
        body = build_bodies(self.bodies, self.model, kwargs, self.shape, factory, self.positions, self.encoding)
        for one, ranks in zip(each(body), self.compressed, strict=False):
            factor(one, ranks)
        features = feature_count(body, self.shape, self.model, self.positions, self.encoding)
        return self.around(body, features).formed(self.form, self.heads)

    def around(self, body: torch.nn.Module, features: int) -> Student:
        """A student of this architecture on a given body, with the one fresh head that training starts from.

        If each head reads its own body, the student runs only once it has as many heads as bodies.
        """
        heads: HeadStack
        if self.tied is not None:
            heads = tied_to(body, self.tied, features, self.hidden, self.outputs)
        elif self.last_stage is None:
            seen = features // self.bodies if self.own_body else features
            heads = Heads(1, seen, self.hidden, self.outputs, self.own_body)
        else:
            body, heads = apart(body, self.last_stage, self.shape, self.outputs)
        return Student(body, heads, self.family, self.pooling(), self.average, self.positions)

    def pooling(self) -> Tensor | None:
        """The weights of one head per member, (M,), with sum 1; None for equal weights."""
        return shares_of(self.weights)


def shares_of(weights: Sequence[float] | None) -> Tensor | None:
    """Weights of members, (M,), with sum 1; None for equal weights."""
    if weights is None:
        return None
    shares = torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.max()  # first, since their sum may overflow
    return (shares / shares.sum()).float()
