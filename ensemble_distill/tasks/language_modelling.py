"""Language modelling: each position of a row is predicted by the probabilities of its classes.

Classes are the tokens of a vocabulary, and a position's label is the token that follows. If rows are not windows of a
text, classes may be anything else, such as parts of speech.

Each position counts as an answer of its own: B rows of L positions become B·L answers, minus those whose label is
ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, numbered
from ensemble_distill.tasks.checks import positions as checks
from ensemble_distill.tasks.checks.remedies import remedy
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.conformal import Conformal
from ensemble_distill.tasks.figures import UNCERTAINTIES, Figures, Values, each_member
from ensemble_distill.tasks.of_logits import LOGITS_APART
from ensemble_distill.tasks.task import Array, Labeled

if TYPE_CHECKING:
    from torch import Tensor

    from ensemble_distill.predictive.categorical import Categorical

UNITS = (None, "word", "character")
MOST = 2**20  # positions of a row
LARGEST = 700.0  # nats; the exponential is still finite


@dataclass(frozen=True)
class LanguageModelling(Classification):
    """K classes at each of L positions.

    Attributes:
        positions: L, the number of positions that are predicted: the last ones of a row.
        token_unit: what a token of the text is, "word" or "character"; None if rows do not come from a text.
    """

    positions: int = 1
    token_unit: str | None = None

    key: ClassVar[str] = "language-modelling"
    called: ClassVar[str] = "tokens"
    folders: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = True
    solves: ClassVar[bool] = False  # least squares for a vocabulary means K systems, for a start that one step undoes
    answers_called: ClassVar[str] = "positions"
    figures_shown: ClassVar[tuple[str, ...]] = ("perplexity", "nll", "accuracy", "ece", *UNCERTAINTIES)
    shifted_shown: ClassVar[tuple[str, ...]] = ("perplexity", "nll", *UNCERTAINTIES)
    predicted: ClassVar[tuple[str, ...]] = ("token", "nll", "likeliest", "probability")
    conformal: ClassVar[Conformal | None] = None  # positions of one text depend on each other

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.positions, bool) or not isinstance(self.positions, int) or not 1 <= self.positions <= MOST:
            raise ValueError(f"positions are {self.positions!r}, and not a number from 1 to {MOST}")
        if self.token_unit not in UNITS:
            raise ValueError(f"token_unit is {self.token_unit!r}, and not one of {UNITS}")

    # --- records ------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.positions, len(self.classes))

    @property
    def smaller_records(self) -> str:
        return "Lower tokens.size, train on fewer rows (rows of data.train), name another output.cache, or make room."

    @property
    def uncertainty_unit(self) -> str:
        return "nats a position"

    @property
    def told(self) -> str:
        return f"{len(self.classes)} {self.called} at {self.positions} positions"

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"positions": self.positions, "token_unit": self.token_unit}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        classes = record["classes"]
        if not isinstance(classes, list | tuple):
            raise ValueError(f"classes is {classes!r}, and not a list")
        if "positions" not in record:
            raise ValueError("it has no positions")
        return cls(tuple(classes), record["positions"], record.get("token_unit"))

    @classmethod
    def found(cls, splits: Mapping[str, Labeled], widths: Mapping[str, int], known: Self | None) -> Self:
        (first, positions), *others = ((name, _told_positions(source)) for name, source in splits.items())
        for name, count in others:
            if count != positions and splits[name].labels is not None:
                raise EdistillError(
                    f"data.{first} has {positions} positions a row, and data.{name.replace('/', '.')} has {count}. "
                    "Give every split labels (rows, L) of one length; without labels all positions of a row are told."
                )
        inside = {name: source for name, source in splits.items() if not name.startswith("ood/")}
        units = (getattr(source, "token_unit", None) for source in inside.values())
        named = [source.classes for source in inside.values() if source.classes is not None]
        number = next(iter(widths.values()))
        names = known.classes if known else next(iter(named), numbered(number))
        for member, width in widths.items():
            if width != len(names):
                raise EdistillError(
                    f"Member {member} says {width} numbers at a position, and the data has {len(names)} "
                    f"{cls.called} ({', '.join(map(repr, names[:4]))}, …). Give the vocabulary that it was trained "
                    "with (tokens.vocabulary), or remove it from teachers.path."
                )
        task = cls(names, positions, next((unit for unit in units if unit), None))
        for name, source in inside.items():
            task.refuse_other_labels(source, f"data.{name}", "the ensemble")
        return task

    def refuse_other_labels(self, source: Labeled, named: str, owner: str) -> None:
        names = source.classes
        if names is not None and self.data_names is not None and tuple(names) != self.classes:
            raise EdistillError(
                f"{named} has {len(names)} {self.called} ({', '.join(map(repr, names[:4]))}, …), and {owner} has "
                f"{len(self.classes)} ({', '.join(map(repr, self.classes[:4]))}, …), or in another order. Give the "
                "same vocabulary."
            )
        if source.labels is not None and (count := _told_positions(source)) != self.positions:
            raise EdistillError(
                f"{named} has {count} positions a row, and {owner} has {self.positions}. Give labels "
                f"(rows, {self.positions}); of a text, set tokens.window to {self.positions}."
            )
        checks.refuse_all_ignored(source.labels, named)
        if source.labels is not None:
            self._refuse_beyond(source.labels[source.labels != checks.IGNORED], named, f"{owner} has")

    # --- labels and members -------------------------------------------------------------------------------------

    @classmethod
    def as_labels(
        cls, y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
    ) -> Array:
        """Classes as int64, (rows, L)."""
        return checks.as_labels(y, rows, named, classes, first_row)

    def order_in(self, owner: str, names: Sequence[str] | None, source: str) -> tuple[int, ...] | None:
        """None: a student also reads ids as inputs, so the order must be the same.

        Raises:
            EdistillError: the data's vocabulary is another one, or in another order.
        """
        if names is not None and tuple(names) != self.classes:
            raise EdistillError(
                f"{owner}: {source} has {len(self.classes)} {self.called}, and the data {len(names)}, or in another "
                "order. Give the vocabulary that it was trained with (tokens.vocabulary)."
            )
        return None

    @classmethod
    def joined(cls, raw: Any, rows: int, member: Member) -> Tensor:
        """The output as one tensor, (B, L, K)."""
        from torch import Tensor

        if not isinstance(raw, Tensor) or raw.dim() != 3 or len(raw) != rows:
            got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            raise EdistillError(
                f"Member {member.name} returns {got} for {rows} rows; it is to return (rows, positions, classes). "
                + remedy(member, "out.transpose(0, 1)", "batch_first=True in its recurrent layers")
            )
        return raw.detach()

    @classmethod
    def answers(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """Logits (B, L, K)."""
        values = raw.float().cpu().numpy()
        flat = super().answers(raw.flatten(0, 1), member, split, [row for row in rows for _ in range(values.shape[1])])
        return flat.reshape(values.shape)

    @classmethod
    def candidates(cls, parts: Sequence[Any], member: Member, rows: int, count: int | None) -> list[Any]:
        return [part for part in parts if part.tensor.dim() == 3]

    @classmethod
    def refuse_unlikely(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> None:
        super().refuse_unlikely(raw[:, -1], member, split, rows)

    @classmethod
    def compared(cls, answers: Array) -> Array:
        """Logits minus each position's mean, (B, L·K)."""
        centered: Array = (answers - answers.mean(axis=-1, keepdims=True)).reshape(len(answers), -1)
        return centered

    @classmethod
    def number_told(cls, output: int, value: float, width: int) -> str:
        return f"a logit, counted from its position's mean, of {value:.4g}"

    @classmethod
    def change(cls, now: Array, then: Array) -> tuple[float, str]:
        return super().change(*(said.reshape(-1, said.shape[-1]) for said in (now, then)))

    @classmethod
    def gist(cls, answers: Array) -> Array:
        return checks.gist(answers)

    @classmethod
    def refuse_other_meaning(
        cls, member: Member, gist: Array, labels: Array, classes: Sequence[str] | None, seen: bool
    ) -> str | None:
        checks.refuse_other_vocabulary(member, gist, labels)
        return None

    # --- answers ------------------------------------------------------------------------------------------------

    def each_answer(self, said: Tensor, labels: Tensor | None) -> Tensor:
        each = said.transpose(1, 2).flatten(0, 1)
        return each if labels is None else _counting(each, labels)

    def each_label(self, labels: Tensor, counted: Tensor) -> Tensor:
        return _counting(labels.flatten(), counted)

    def each_of_row(self, values: Tensor, labels: Tensor | None) -> Tensor:
        each = values.repeat_interleave(self.positions)
        return each if labels is None else _counting(each, labels)

    def answers_in(self, rows: int, labels: Array | None) -> int:
        return rows * self.positions if labels is None else int((labels != checks.IGNORED).sum())

    # --- figures ------------------------------------------------------------------------------------------------

    def quality(self, predictive: Categorical, y: Tensor | None) -> Values:
        """The likeliest class of each distribution and its probability; with classes y (A,), its mistakes too."""
        confidence, top = predictive.means().max(-1)
        rows: Values = {"prediction": top.double().numpy(), "confidence": confidence.numpy()}
        if y is not None:
            rows["correct"] = (top == y.unsqueeze(1)).double().numpy()
        return rows

    def figures(self, rows: Mapping[str, NDArray[Any]]) -> Figures:
        """`figures_shown`; `perplexity` is exp of the mean NLL, for members the mean of theirs. `ece` uses 15 bins."""
        found = super().figures(rows)
        nll = [own.mean() for (own,) in each_member(rows["nll"].reshape(len(rows["nll"]), -1))] if "nll" in rows else []
        found["perplexity"] = float(np.exp(nll).mean()) if nll else None
        return {name: found[name] for name in self.figures_shown}

    @classmethod
    def of_nll(cls, nll: float) -> dict[str, float]:
        return {"nll": nll, "perplexity": math.exp(min(nll, LARGEST))}

    # --- serving ------------------------------------------------------------------------------------------------

    @classmethod
    def tolerance(cls, name: str, outputs: Mapping[str, Array]) -> Array | float:
        if name.startswith("state"):
            return LOGITS_APART
        return super().tolerance(name, outputs)

    def served(self, rows: int) -> dict[str, tuple[int, ...]]:
        return {"logits": (rows, self.positions, len(self.classes))}

    def each_served(
        self, names: Sequence[str], first_row: int, outputs: Mapping[str, Array], labels: Array | None
    ) -> tuple[Sequence[str], Mapping[str, Array]]:
        """One answer per position that counts, called "token 17" for a text, else "row 2, position 3"."""
        count = len(names) * self.positions
        counts = np.ones(count, bool) if labels is None else labels.reshape(-1) != checks.IGNORED
        if self.token_unit is None:
            every = [f"{name}, position {at}" for name in names for at in range(self.positions)]
        else:
            every = [f"token {first_row * self.positions + at}" for at in range(count)]
        each = {
            name: values.reshape(count, *values.shape[2:])[counts]
            for name, values in outputs.items()
            if name == "logits" or "uncertainty" in name
        }
        if (said := outputs.get("head_logits")) is not None:
            each["head_logits"] = said.swapaxes(1, 2).reshape(count, said.shape[1], -1)[counts]
        if labels is not None:
            each["labels"] = labels.reshape(-1)[counts]
        return [name for name, kept in zip(every, counts, strict=True) if kept], each

    def usable(self, outputs: Mapping[str, Array]) -> Array:
        with np.errstate(all="ignore"):
            usable: Array = np.abs(np.logaddexp.reduce(outputs["logits"], axis=-1)) < 0.01
        return usable

    def predictions(self, outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """For each position, the true class and its −ln p, if known, and the likeliest class with its probability."""
        truth = outputs.get("labels", np.full(len(outputs["logits"]), checks.IGNORED))
        for logits, y in zip(outputs["logits"], truth, strict=True):
            top, known = int(logits.argmax()), y != checks.IGNORED
            yield {
                "token": self.classes[y] if known else "",
                "nll": float(-logits[y]) if known else "",
                "likeliest": self.classes[top],
                "probability": float(np.exp(logits[top])),
            }


def _told_positions(source: Any) -> int:
    """The number of a row's positions that are predicted: those with labels, or all if there are none."""
    labels = source.labels
    return int(source.item(0).x.shape[0] if labels is None else labels.shape[1])


def _counting(each: Tensor, labels: Tensor) -> Tensor:
    """The answers among (B·L, …) whose label (B, L) is not ignored."""
    counts = labels.flatten() != checks.IGNORED
    if bool(counts.all()):
        return each
    return each[counts.nonzero()[:, 0].to(each.device)]


TASK = LanguageModelling
