"""Multi-label: an answer is K independent yes/no labels, each predicted by its own probability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, numbered
from ensemble_distill.tasks.checks import yes_no
from ensemble_distill.tasks.conformal import Conformal, LabelSets
from ensemble_distill.tasks.figures import UNCERTAINTIES, Figures, Values, each_figures, each_member, each_rows, means
from ensemble_distill.tasks.of_logits import LAST_DIGITS, LOGITS_APART, NATS_APART, OfLogits
from ensemble_distill.tasks.task import Array, Labeled

if TYPE_CHECKING:
    from torch import Tensor

    from ensemble_distill.predictive.bernoulli import Bernoulli
    from ensemble_distill.predictive.protocol import Family

LIKELY = 0.5  # the least probability at which `predict` names a label


@dataclass(frozen=True)
class MultiLabel(OfLogits):
    """K labels in the order of their columns; if the data has no names, they are named 0 to K − 1."""

    key: ClassVar[str] = "multi-label"
    called: ClassVar[str] = "labels"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)  # float16 below a row's maximum is too coarse for the other logits
    figures_shown: ClassVar[tuple[str, ...]] = (
        "nll",
        "brier",
        "macro_average_precision",
        "micro_average_precision",
        *UNCERTAINTIES,
    )
    shifted_shown: ClassVar[tuple[str, ...]] = ("nll", "macro_average_precision", *UNCERTAINTIES)
    predicted: ClassVar[tuple[str, ...]] = ("labels", "p")
    conformal: ClassVar[Conformal | None] = LabelSets()

    # --- records ------------------------------------------------------------------------------------------------

    @property
    def uncertainty_unit(self) -> str:
        return "nats, summed over labels"

    @classmethod
    def found(cls, splits: Mapping[str, Labeled], widths: Mapping[str, int], known: Self | None) -> Self:
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in widths.items())
            raise EdistillError(
                f"The members disagree in their number of labels: {listed}. An ensemble shares its labels: remove the "
                "members of another task from teachers.path."
            )
        number = next(iter(widths.values()))
        inside = {name: source for name, source in splits.items() if not name.startswith("ood/")}
        named = [source.classes for source in inside.values() if source.classes is not None]
        task = cls(known.classes if known else next(iter(named), numbered(number)))
        if len(task.classes) != number:
            raise EdistillError(
                f"The members say {number} numbers a row, and the data has {len(task.classes)} labels "
                f"({', '.join(task.classes[:4])}, …). Give the data the members were trained on."
            )
        for name, source in inside.items():
            task.refuse_other_labels(source, f"data.{name}", "the ensemble")
        return task

    def refuse_other_labels(self, source: Labeled, named: str, owner: str) -> None:
        names, labels = source.classes, source.labels
        count = len(self.classes) if labels is None else labels.shape[1]
        if count != len(self.classes):
            raise EdistillError(
                f"{named} has {count} labels a row, and {owner} has {len(self.classes)}. Give the data the members "
                "were trained on."
            )
        if names is not None and names != self.classes and self.data_names is not None:
            raise EdistillError(
                f"{named} names the labels {', '.join(names[:4])}, … ({len(names)}), and {owner} has "
                f"{', '.join(self.classes[:4])}, … ({len(self.classes)}). Give the same columns in the same order."
            )

    # --- labels and members -------------------------------------------------------------------------------------

    @classmethod
    def as_labels(
        cls, y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
    ) -> Array:
        """Labels 0 and 1 as int64, (rows, K)."""
        return yes_no.as_labels(y, rows, named, classes, first_row)

    @classmethod
    def counted(cls, labels: Array) -> int:
        return int(labels.shape[1])

    @classmethod
    def joined(cls, raw: Any, rows: int, member: Member) -> Tensor:
        """The output as one matrix, (B, K)."""
        from ensemble_distill.tasks.checks import logits

        return logits.joined(raw, rows, member, "a multi-label member returns (rows, labels)", "out.unsqueeze(1)")

    @classmethod
    def answers(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """Logits ln p − ln (1 − p), (B, K), in the data's order."""
        return yes_no.as_logits(raw.float().cpu().numpy(), member, split, rows)

    @classmethod
    def as_answers(cls, raw: Tensor, member: Member) -> Tensor:
        return yes_no.as_answers(raw, member)

    @classmethod
    def refuse_unlikely(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> None:
        yes_no.refuse_softmax(raw.float().cpu().numpy(), member, split, rows)

    @classmethod
    def compared(cls, answers: Array) -> Array:
        return answers

    @classmethod
    def number_told(cls, output: int, value: float, width: int) -> str:
        return f"a logit of label {output} of {value:.4g}"

    @classmethod
    def change(cls, now: Array, then: Array) -> tuple[float, str]:
        first, other = (_probabilities(z) for z in (now, then))
        return float(np.abs(first - other).max()), "a probability"

    @classmethod
    def refuse_other_meaning(
        cls, member: Member, gist: Array, labels: Array, classes: Sequence[str] | None, seen: bool
    ) -> str | None:
        """Refuse sigmoids that are declared as logits.

        No rule finds columns in another order without refusing honest members; `inspect` shows the columns' names.
        """
        return yes_no.refuse_sigmoids(gist, labels, member)

    # --- distributions and figures ------------------------------------------------------------------------------

    def members_family(self) -> Family:
        from ensemble_distill.predictive.bernoulli import BernoulliFamily

        return BernoulliFamily()

    def quality(self, predictive: Bernoulli, y: Tensor | None) -> Values:
        """Each label's probability (B, M, K) and whether it is likely; with labels y (B, K), the mistakes too.

        `brier` is the mean of (p − y)² over labels, 0 to 1.
        """
        probs = predictive.means()
        rows: Values = {"probability": probs.numpy(), "prediction": (probs >= LIKELY).double().numpy()}
        if y is not None:
            true = y.unsqueeze(1)
            rows["brier"] = (probs - true).square().mean(-1).numpy()
            rows["truth"] = true.expand_as(probs).numpy()
        return rows

    def uncertainty(self, predictive: Bernoulli) -> Tensor:
        """Each distribution's own entropy, summed over labels."""
        return predictive.entropy().sum(-1)

    def each_uncertainty(self, predictive: Bernoulli, pooled: bool) -> Values:
        """The uncertainties of each label in nats."""
        if not pooled:
            own = predictive.entropy()
            return each_rows(own, own, None)
        each = predictive.each()
        return each_rows(each.total, each.data, each.model if predictive.has_model_uncertainty else None)

    def figures(self, rows: Mapping[str, NDArray[Any]]) -> Figures:
        """`figures_shown`, and each label's own `total_uncertainty.NAME`, `data_…` and `model_…`.

        `macro_average_precision` averages over the labels that some row has, and `micro_average_precision` covers all
        decisions together; see `average_precisions`.
        """
        found = means(rows, {name: name for name in self.figures_shown}) | each_figures(rows, self.classes)
        if "truth" in rows:
            found |= average_precisions(rows["probability"], rows["truth"])
        return found

    # --- serving ------------------------------------------------------------------------------------------------

    @classmethod
    def tolerance(cls, name: str, outputs: Mapping[str, Array]) -> Array | float:
        if "logits" in name:
            limit: Array = LOGITS_APART + LAST_DIGITS * np.abs(outputs[name])
            return limit
        return NATS_APART * int(outputs["logits"].shape[-1])  # a sum over labels

    @classmethod
    def members_tolerance(cls, name: str, outputs: Mapping[str, Array], members: Sequence[Member]) -> Array | float:
        from ensemble_distill.tasks.checks.logits import FLOOR

        limit = super().members_tolerance(name, outputs, members)
        if "logits" not in name or all(member.output == "logits" for member in members):
            return limit
        # float32 probabilities near 1 are about 1e-7 apart, and 1 ÷ p(1 − p) times that shows in the logit
        coarse = 4 * np.finfo(np.float32).eps * (2 + 2 * np.cosh(np.minimum(np.abs(outputs[name]), -np.log(FLOOR))))
        found: Array = limit + coarse
        return found

    def usable(self, outputs: Mapping[str, Array]) -> Array:
        usable: Array = np.all(np.isfinite(outputs["logits"]), axis=1)
        return usable

    def heads_served(self, outputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        said = outputs.get("head_logits")
        return [] if said is None else [{"logits": said[:, head]} for head in range(said.shape[1])]

    def predictions(self, outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """Each row's likely labels, and the probability of every label."""
        for probabilities in _probabilities(outputs["logits"]):
            likely = [name for name, p in zip(self.classes, probabilities, strict=True) if p >= LIKELY]
            yield {
                "labels": likely,
                **{f"p {n}": p for n, p in zip(self.classes, probabilities.tolist(), strict=True)},
            }


def _probabilities(logits: Array) -> NDArray[np.float64]:
    """Probabilities from logits, in float64 and without overflow for logits of any size."""
    found: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return found


def average_precisions(probability: NDArray[Any], truth: NDArray[Any]) -> Figures:
    """Macro and micro average precision of probabilities (N, K); of members (N, M, K), the mean over members.

    Average precision is scikit-learn's, Σ_n (R_n − R_{n−1}) P_n over thresholds. The macro average leaves out labels
    that no row has. Members that answer no row with a label are left out. Both figures are None if no row has a label.
    """
    from sklearn.metrics import average_precision_score

    p, t = (a.reshape(len(a), -1, a.shape[-1]) for a in (probability, truth))
    macros, micros = [], []
    for own, true in each_member(p, t):
        there = np.flatnonzero(true.any(0))
        if len(there):
            macros.append(np.mean([average_precision_score(true[:, k], own[:, k]) for k in there]))
            micros.append(average_precision_score(true.ravel(), own.ravel()))
    found = {"macro_average_precision": macros, "micro_average_precision": micros}
    return {name: float(np.mean(each)) if each else None for name, each in found.items()}


TASK = MultiLabel
