"""Classification: an answer is one of K classes, predicted by probabilities that sum to 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import Member, numbered
from ensemble_distill.tasks.checks import class_order
from ensemble_distill.tasks.checks import labels as checks
from ensemble_distill.tasks.conformal import Conformal, Sets
from ensemble_distill.tasks.figures import UNCERTAINTIES, Figures, Values, each_member, means
from ensemble_distill.tasks.of_logits import LAST_DIGITS, LOGITS_APART, NATS_APART, OfLogits
from ensemble_distill.tasks.task import Array, Labeled

if TYPE_CHECKING:
    from torch import Tensor

    from ensemble_distill.predictive.categorical import Categorical
    from ensemble_distill.predictive.protocol import Family

ECE_BINS = 15
ON_EDGE = 1e-9  # share of a bin's width
ROUNDED = 0.01  # how far the sum of a row's float32 probabilities may be from 1


@dataclass(frozen=True)
class Classification(OfLogits):
    """K classes in the order of their labels; if the data has no names, they are named 0 to K − 1."""

    key: ClassVar[str] = "classification"
    called: ClassVar[str] = "classes"
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "float32")
    one_class: ClassVar[bool] = True
    folders: ClassVar[bool] = True
    figures_shown: ClassVar[tuple[str, ...]] = ("accuracy", "nll", "brier", "ece", *UNCERTAINTIES)
    shifted_shown: ClassVar[tuple[str, ...]] = ("accuracy", "nll", *UNCERTAINTIES)
    predicted: ClassVar[tuple[str, ...]] = ("class", "probability")
    conformal: ClassVar[Conformal | None] = Sets()

    # --- records ------------------------------------------------------------------------------------------------

    @property
    def uncertainty_unit(self) -> str:
        return "nats"

    @classmethod
    def found(cls, splits: Mapping[str, Labeled], widths: Mapping[str, int], known: Self | None) -> Self:
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in widths.items())
            raise EdistillError(
                f"The members disagree in their number of classes: {listed}. An ensemble shares its classes: remove "
                "the members of another task from teachers.path."
            )
        number = next(iter(widths.values()))
        inside = {name: source for name, source in splits.items() if not name.startswith("ood/")}
        named = {name: source.classes for name, source in inside.items() if source.classes is not None}
        _refuse_other_names(named)
        names = known.classes if known else next(iter(named.values()), numbered(number))
        if len(names) != number:
            where = "the cache" if known else f"data.{next(iter(named))}"
            raise EdistillError(
                f"The members have {number} classes, but {where} has {len(names)} ({first_few(names, 4)}). Give "
                "the data the members were trained on."
            )
        task = cls(names)
        for name, source in inside.items():
            task._refuse_beyond(source.labels, f"data.{name}", "the members have")
        return task

    def refuse_others(self, members: Sequence[Member]) -> None:
        super().refuse_others(members)
        for member in members:
            order = member.class_order
            if order is not None and len(order) != len(self.classes):
                raise ValueError(f"member {member.name} orders {len(order)} classes, and there are {len(self.classes)}")

    def refuse_other_labels(self, source: Labeled, named: str, owner: str) -> None:
        names = source.classes
        if names is not None and len(names) != len(self.classes):
            raise EdistillError(
                f"{named} has the classes {', '.join(names[:4])}, … ({len(names)}), and {owner} has "
                f"{', '.join(self.classes[:4])}, … ({len(self.classes)}). Give it the same class folders."
            )
        self._refuse_beyond(source.labels, named, f"{owner} has")

    def _refuse_beyond(self, labels: Array | None, named: str, owner: str) -> None:
        if labels is None or not len(labels):
            return
        if not np.issubdtype(labels.dtype, np.integer):
            raise EdistillError(f"{named} has labels of {labels.dtype}; classes are integers from 0.")
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= len(self.classes):
            raise EdistillError(
                f"{named} has label {most if most >= len(self.classes) else least}, but {owner} classes 0 to "
                f"{len(self.classes) - 1}. {self._as_numbers(labels)}"
            )

    def _as_numbers(self, labels: Array) -> str:
        """What to do about labels that are no numbers of classes."""
        if len(np.unique(labels)) == len(self.classes):
            return (
                "Number the classes from 0, in the order of the members' outputs; if that is the labels' own order, "
                "store y = numpy.unique(y, return_inverse=True)[1]."
            )
        return "Give the data the members were trained on."

    # --- labels and members -------------------------------------------------------------------------------------

    @classmethod
    def as_labels(
        cls, y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
    ) -> Array:
        """Classes as int64, (rows,)."""
        return checks.as_class_labels(y, rows, named, classes, first_row)

    @classmethod
    def counted(cls, labels: Array) -> int:
        return int(labels.max()) + 1

    @classmethod
    def joined(cls, raw: Any, rows: int, member: Member) -> Tensor:
        """The output as one matrix, (B, K)."""
        from ensemble_distill.tasks.checks import logits

        return logits.joined(raw, rows, member)

    @classmethod
    def answers(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """Logits (B, K) in the data's class order."""
        from ensemble_distill.tasks.checks import logits

        return logits.checked(raw.float().cpu().numpy(), member, split, rows)

    @classmethod
    def as_answers(cls, raw: Tensor, member: Member) -> Tensor:
        from ensemble_distill.tasks.checks import logits

        return logits.as_answers(raw, member)

    @classmethod
    def refuse_unlikely(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> None:
        from ensemble_distill.tasks.checks import logits

        logits.refuse_sigmoids(raw.float().cpu().numpy(), member, split, rows)

    @classmethod
    def compared(cls, answers: Array) -> Array:
        """Logits minus their mean over classes, since a softmax ignores a constant added to all logits of a row."""
        centered: Array = answers - answers.mean(axis=1, keepdims=True)
        return centered

    @classmethod
    def number_told(cls, output: int, value: float, width: int) -> str:
        return f"a logit of class {output}, counted from the row's mean, of {value:.4g}"

    @classmethod
    def change(cls, now: Array, then: Array) -> tuple[float, str]:
        first, other = (np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True)) for z in (now, then))
        return float(np.abs(first - other).max()), "a probability"

    @classmethod
    def gist(cls, answers: Array) -> Array:
        """The likeliest class, (B,)."""
        top: Array = answers.argmax(1)
        return top

    @classmethod
    def refuse_other_meaning(
        cls, member: Member, gist: Array, labels: Array, classes: Sequence[str] | None, seen: bool
    ) -> str | None:
        return class_order.check_class_order(member.name, labels, gist, classes)

    # --- distributions and figures ------------------------------------------------------------------------------

    def members_family(self) -> Family:
        from ensemble_distill.predictive.categorical import CategoricalFamily

        return CategoricalFamily()

    def quality(self, predictive: Categorical, y: Tensor | None) -> Values:
        """The top class of each distribution and its probability; with classes y (B,), its mistakes too."""
        probs = predictive.means()
        confidence, top = probs.max(-1)
        rows: Values = {"prediction": top.double().numpy(), "confidence": confidence.numpy()}
        if y is not None:
            from torch.nn.functional import one_hot

            true = one_hot(y, probs.shape[-1]).unsqueeze(1)
            rows["correct"] = (top == y.unsqueeze(1)).double().numpy()
            rows["brier"] = (probs - true).square().sum(-1).numpy()
        return rows

    def uncertainty(self, predictive: Categorical) -> Tensor:
        """Each distribution's own entropy."""
        return predictive.entropy()

    def figures(self, rows: Mapping[str, NDArray[Any]]) -> Figures:
        """`figures_shown`; `brier` is the sum over classes, 0 to 2, and `ece` uses 15 bins."""
        found = means(rows, {name: "correct" if name == "accuracy" else name for name in self.figures_shown})
        if "correct" in rows:
            confidence = rows["confidence"].reshape(len(rows["confidence"]), -1)
            correct = rows["correct"].reshape(confidence.shape)
            errors = [expected_calibration_error(c, r) for c, r in each_member(confidence, correct)]
            found["ece"] = float(np.mean(errors))
        return found

    # --- serving ------------------------------------------------------------------------------------------------

    @classmethod
    def tolerance(cls, name: str, outputs: Mapping[str, Array]) -> Array | float:
        if name == "concentration":  # a head emits its logarithm
            return LOGITS_APART * outputs[name]
        rounding = LAST_DIGITS * max(float(np.abs(of).max()) for at, of in outputs.items() if "logits" in at)
        return rounding + (LOGITS_APART if "logits" in name else NATS_APART)

    def usable(self, outputs: Mapping[str, Array]) -> Array:
        with np.errstate(all="ignore"):
            sums = np.exp(outputs["logits"]).sum(axis=1)
            usable: Array = np.isfinite(outputs["logits"]).all(axis=1) & (np.abs(sums - 1) < ROUNDED)
        return usable

    def heads_served(self, outputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        said = outputs.get("head_logits")
        if said is None:
            return []
        log_p = said - np.logaddexp.reduce(said, axis=-1, keepdims=True)
        beside = {name: outputs[name] for name in ("labels",) if name in outputs}
        return [{"logits": log_p[:, head], **beside} for head in range(said.shape[1])]

    def predictions(self, outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """The likeliest class of each row and its probability."""
        for probabilities in np.exp(outputs["logits"]):
            top = int(probabilities.argmax())
            yield {"class": self.classes[top], "probability": float(probabilities[top])}


def _refuse_other_names(named: Mapping[str, tuple[str, ...]]) -> None:
    """Raise EdistillError if two splits name different classes, or the same ones in another order."""
    first = next(iter(named), None)
    for name, these in named.items():
        if first is not None and these != named[first]:
            different = [f"{a} / {b}" for a, b in itertools.zip_longest(named[first], these) if a != b][:3]
            raise EdistillError(
                f"data.{first} has {len(named[first])} classes and data.{name} has {len(these)}, or in another order "
                f"({', '.join(different)}). Give every split the same class folders."
            )


def bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """The bin of each confidence, 0 to `bins` − 1. Bins have equal width and are closed above, (low, high].

    Source: Guo et al. 2017, arXiv:1706.04599. What exceeds an edge by rounding alone is on it, as the mean of members
    that vote with a few fixed probabilities.
    """
    index: NDArray[np.int64] = np.ceil(confidence * bins - ON_EDGE).astype(np.int64) - 1
    return index.clip(0, bins - 1)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> float:
    """Mean |accuracy − confidence| over bins of the top probability, weighted by their row counts; see `bin_of`."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    gap = np.bincount(bin_of(confidence, bins), correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


TASK = Classification
