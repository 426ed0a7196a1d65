"""The folder a training leaves behind, and the student rebuilt from it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ensemble_distill import __version__
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Calibration, Member, Preprocessing
from ensemble_distill.predictive import family_from_json, family_to_json
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.predictive.protocol import Average, Family
from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.runtime.files import read_json, remove_file, write_json, write_whole
from ensemble_distill.students.bodies import BodyFactory, build_bodies, each, feature_count
from ensemble_distill.students.compression.factored import factor
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.last_stage import HeadStack, LastStage, apart
from ensemble_distill.students.student import Form, Student

WEIGHTS = "student.safetensors"
CALIBRATION = "calibration.json"
CONFIG = "config.json"


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
        path = folder / CONFIG
        try:
            return cls.from_json(read_json(path))
        except (ValueError, KeyError, TypeError, AttributeError, EdistillError) as error:
            raise EdistillError(
                f"{path} is damaged ({type(error).__name__}: {error}). Restore it, or run edistill train --overwrite."
            ) from None

    def build(self, factory: BodyFactory | None = None) -> Student:
        """A student whose weights are to be loaded; none are fetched for a pretrained body."""
        kwargs = dict(self.kwargs)
        if factory is None and ":" not in self.model:
            kwargs.pop("pretrained", None)
        body = build_bodies(self.bodies, self.model, kwargs, self.shape, factory)
        for one, ranks in zip(each(body), self.compressed, strict=False):
            factor(one, ranks)
        features = feature_count(body, self.shape, self.model)
        return self.around(body, features).formed(self.form, self.heads)

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


@dataclass(frozen=True)
class Run:
    """A finished run: `student.safetensors` and `config.json` in one folder."""

    folder: Path
    config: StudentConfig

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Raises: EdistillError when the folder holds no finished run, or its config is damaged."""
        missing = next((name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()), None)
        if missing is not None:
            what = "an unfinished run" if (folder / "args.toml").is_file() else "no run"
            again = "Run edistill train" + (" --overwrite." if (folder / WEIGHTS).is_file() else ".")
            raise EdistillError(f"{folder} holds {what} ({missing} is missing). {again}")
        return cls(folder, StudentConfig.load(folder))

    @classmethod
    def save(cls, folder: Path, config: StudentConfig, student: Student) -> Run:
        """Write a finished student. The weights come last: their presence is what finishes a run."""
        write_json(folder / CONFIG, config.to_json())
        # a clone each: safetensors refuses tensors that share memory, as tied weights do
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in student.state_dict().items()}
        write_whole(folder / WEIGHTS, save(tensors))
        return cls(folder, config)

    @property
    def calibration(self) -> Calibration | None:
        """What `calibrate` left in the run, if anything. Raises EdistillError when it is damaged."""
        path = self.folder / CALIBRATION
        if not path.exists():
            return None
        try:
            return Calibration.from_json(read_json(path))
        except (OSError, ValueError, TypeError, AttributeError, EdistillError) as error:
            raise EdistillError(
                f"{path} is damaged ({error}). Run edistill calibrate again, or edistill calibrate --remove."
            ) from None

    def keep_calibration(self, calibration: Calibration) -> None:
        """The file stays as it is, its time included, where it says the same."""
        try:
            same = self.calibration == calibration
        except EdistillError:
            same = False
        if not same:
            write_json(self.folder / CALIBRATION, calibration.to_json())

    def forget_calibration(self) -> None:
        """Raises EdistillError when the run has none."""
        if not os.path.lexists(self.folder / CALIBRATION):
            raise EdistillError(f"{self.folder} is not calibrated. There is nothing to remove.")
        remove_file(self.folder / CALIBRATION, within=self.folder)

    def student(self, body: BodyFactory | None = None, *, calibrated: bool = True) -> Student:
        """The trained student in eval mode, on the CPU.

        Args:
            body: the factory of its body, where the one it was trained with is no longer at its place.
            calibrated: whether it applies the run's calibration, if there is one.
        """
        config = self.config
        file, _, name = config.model.rpartition(":")
        if body is None and file.endswith(".py"):
            there = (self.folder / file).resolve()
            if not there.is_file():
                raise EdistillError(
                    f"{self.folder} was trained with the body {config.model}, and {there} is not there. Pass the "
                    f"factory: load_student({str(self.folder)!r}, body={name})."
                )
            body = load_factory(f"{there}:{name}", "the student's body")
        student = config.build(body)
        weights = self.folder / WEIGHTS
        try:
            saved = load_file(weights)
        except SafetensorError as error:
            raise EdistillError(f"{weights} is damaged ({error}). Run edistill train --overwrite.") from None
        unlike = misfit(saved, student.state_dict())
        if unlike is not None:
            raise EdistillError(
                f"{weights} does not fit the body {config.model} with {dict(config.kwargs)}: {unlike}. Put back the "
                f"body it was trained with, or pass it: load_student({str(self.folder)!r}, body=...)."
            )
        student.load_state_dict(saved)
        student.calibration = self.calibration if calibrated else None
        return student.eval()


def misfit(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not the same on both sides, and how many more; None where all are."""
    shapes, expected = ({name: tuple(t.shape) for name, t in side.items()} for side in (saved, wanted))
    names = [name for name in (*expected, *shapes) if shapes.get(name) != expected.get(name)]
    names = list(dict.fromkeys(names))
    if not names:
        return None
    first, more = names[0], len(names) - 1
    told = f"{first} is {shapes.get(first, 'absent')} in the file and {expected.get(first, 'absent')} in the student"
    return told + (f", and {more} more differ" if more else "")


def load_student(run: str | Path, body: BodyFactory | None = None) -> Student:
    """The trained student of a run folder, in eval mode on the CPU; x (B, ...) to each head's numbers (B, H, W).

    `student.predictive(student(x)).summary()` gives the mean and the three uncertainties.

    Raises:
        EdistillError: no finished run there, or its body cannot be rebuilt.
    """
    return Run.open(Path(run)).student(body)
