"""What the rest of the package needs to know of a task; only tasks answer it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from numpy.typing import NDArray

from ensemble_distill.facts import Member
from ensemble_distill.tasks.apart import Apart
from ensemble_distill.tasks.checks.class_order import order_by_names
from ensemble_distill.tasks.conformal import Conformal
from ensemble_distill.tasks.figures import ENTROPIES, Figures, Values

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ensemble_distill.predictive.protocol import Family

Array = NDArray[Any]


class Labeled(Protocol):
    """What a task reads of a split."""

    @property
    def classes(self) -> tuple[str, ...] | None: ...  # names; None if the data has none
    @property
    def labels(self) -> Array | None: ...


class Task(ABC):
    """What the answer of a row is: a frozen dataclass, one per file, with its classes or targets as fields.

    Whatever is known before data and members are opened is a class attribute or a class method.

    Attributes:
        key: the value of `task = "…"`.
        called: what `names` name, in the plural: "classes".
        outputs: what members may return, the values of `teachers.output`.
        own_output: the one of those that a run of edistill returns as a member.
        averages: how members may pool, the values of `teachers.average`.
        dtypes: how records may be stored, the default first.
        format: the layout of records, a file of `cache/formats/`.
        standardizes: whether members may return answers in another unit, `teachers.standardized`.
        one_class: whether an answer is one of several classes, predicted by probabilities that sum to 1.
        named: whether outputs go by the data's class names.
        folders: whether the names of image folders are labels.
        of_tokens: whether rows are token ids, each predicted position by position.
        answers_called: what single answers are, in the plural: figures count them.
        softens: whether the same temperature on teacher and student preserves a loss's optimum.
        solves: whether heads are solved for by least squares by default.
        says_labels: whether a head predicts a label as a number, not how likely each label is.
        shares_output: whether a student's output layer means the same as its teacher's.
        figures_shown: the figures of quality and uncertainty, in the order of `evaluate`.
        uncertainties_told: each uncertainty of a row in words.
        shifted_shown: the figures in the table of `evaluate --shifts`.
        predicted: the first words of the columns that `predict` writes after a row's name, in order.
        conformal: how sets or intervals are made; None if rows are not exchangeable.
        exact: the columns of `predict` that keep all digits, since numbers far from 0 may differ only in the last.
    """

    key: ClassVar[str]
    called: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    own_output: ClassVar[str]
    averages: ClassVar[tuple[str, ...]] = ("probabilities",)
    dtypes: ClassVar[tuple[str, ...]]
    format: ClassVar[str]
    standardizes: ClassVar[bool] = False
    one_class: ClassVar[bool] = False
    named: ClassVar[bool] = False
    folders: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    answers_called: ClassVar[str] = "rows"
    softens: ClassVar[bool] = True
    solves: ClassVar[bool] = False
    says_labels: ClassVar[bool] = False
    shares_output: ClassVar[bool] = True
    figures_shown: ClassVar[tuple[str, ...]]
    uncertainties_told: ClassVar[Mapping[str, str]] = ENTROPIES
    shifted_shown: ClassVar[tuple[str, ...]]
    predicted: ClassVar[tuple[str, ...]]
    exact: ClassVar[tuple[str, ...]] = ()
    conformal: ClassVar[Conformal | None] = None

    # --- records ------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of the classes, labels or targets, in order; empty for a single target."""

    @property
    def data_names(self) -> tuple[str, ...] | None:
        """The data's own names of its classes; None if it has none."""
        return None

    @property
    @abstractmethod
    def width(self) -> int:
        """W, the number of values that the cache holds of a member's answer."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a member's cached output for a row: (W,), or (L, K) with positions."""
        return (self.width,)

    @property
    def smaller_records(self) -> str:
        """A sentence that says how to make a cache smaller."""
        return "Lower views.count, name another output.cache, or make room."

    @property
    @abstractmethod
    def told(self) -> str:
        """What is predicted for a row, in words: "10 classes"."""

    @property
    @abstractmethod
    def uncertainty_unit(self) -> str:
        """The unit of uncertainties, for a table's heading."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The record {"task", "classes", …} in manifests, configs and exported files."""

    def more_json(self) -> dict[str, Any]:
        """What `to_json` holds beyond the task and its classes, for `inspect`."""
        return {key: value for key, value in self.to_json().items() if key not in ("task", "classes")}

    @classmethod
    @abstractmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises ValueError for a record that it did not write."""

    @classmethod
    @abstractmethod
    def found(cls, splits: Mapping[str, Labeled], widths: Mapping[str, int], known: Self | None) -> Self:
        """The task that data and members agree on.

        Args:
            splits: by name; labels of OOD splits are ignored.
            widths: for each member's name, the number of values it returns for an answer.
            known: the task of an existing cache; None if there is none.

        Raises:
            EdistillError: members, names or labels do not agree.
        """

    @abstractmethod
    def refuse_other_labels(self, source: Labeled, named: str, owner: str) -> None:
        """Raise EdistillError if a split's labels cannot be answers of this task.

        Args:
            named: the split's key, "data.test"; owner: whose task it is, such as a run's folder. Both for messages.
        """

    def refuse_others(self, members: Sequence[Member]) -> None:
        """Raise ValueError if a recorded member answers another task."""
        for member in members:
            if member.output not in self.outputs:
                raise ValueError(f"the task is {self.key}, and member {member.name} returns {member.output}")

    # --- labels -------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def as_labels(
        cls, y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
    ) -> Array:
        """A user's labels, checked and converted to the task's dtype: (rows,) or (rows, D).

        Args:
            rows: the number of rows of the data.
            named: what `y` is, for messages.
            classes: the names that labels index; None if there are none.
            first_row: the row that y[0] belongs to.

        Raises:
            EdistillError: a wrong shape or dtype, or a value that is not a label.
        """

    @classmethod
    @abstractmethod
    def counted(cls, labels: Array) -> int:
        """The least number of classes, labels or targets that labels from `as_labels`, of a row or more, imply."""

    # --- members ------------------------------------------------------------------------------------------------

    def order_in(self, owner: str, names: Sequence[str] | None, source: str) -> tuple[int, ...] | None:
        """For each of a student's outputs, the index of the data's class of the same name; None if the orders agree.

        Args:
            owner: the student's name; source: the file that holds its names. Both for messages.
            names: the data's names; None if it has none.

        Raises:
            EdistillError: the student and the data have different names.
        """
        return None if names is None else order_by_names(owner, self.names, names, source)

    @classmethod
    @abstractmethod
    def joined(cls, raw: Any, rows: int, member: Member) -> Tensor:
        """A member's output for `rows` rows as one tensor (B, ·). Raises EdistillError if it cannot be one."""

    @classmethod
    def is_joined(cls, raw: Any, rows: int, member: Member) -> bool:
        """Whether `joined` accepts an output that is not a single tensor, such as a pair."""
        return False

    @classmethod
    @abstractmethod
    def answers(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """A member's output (B, ·) as the cache holds it, (B, W), in the data's order and unit.

        Raises:
            EdistillError: an output is not finite, or is not what `teachers.output` says.
        """

    @classmethod
    @abstractmethod
    def as_answers(cls, raw: Tensor, member: Member) -> Tensor:
        """The answers (B, W) that `answers` gives for raw outputs (B, ·); in torch alone and unchecked, for a graph."""

    @classmethod
    @abstractmethod
    def candidates(cls, parts: Sequence[Any], member: Member, rows: int, count: int | None) -> list[Any]:
        """The tensors among a member's outputs that may be its answer.

        Args:
            parts: the outputs, each a `Part` with one row for each of `rows`.
            count: the number of the data's classes or targets; None if unknown.
        """

    @classmethod
    def refuse_unlikely(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> None:
        """Raise EdistillError if outputs of a few rows are plainly not what `teachers.output` says."""
        return None  # not every task can tell

    @classmethod
    @abstractmethod
    def compared(cls, answers: Array) -> Array:
        """Answers (B, W) in a form for comparison, without meaningless parts such as a constant on all logits."""

    @classmethod
    @abstractmethod
    def magnitude(cls, answers: Array) -> float:
        """The size that the rounding of answers (B, W) is relative to."""

    @classmethod
    @abstractmethod
    def apart(cls, first: Array, rounding: float) -> Apart:
        """How far apart answers (B, W) from `compared` may lie; `rounding` is that of single precision."""

    @classmethod
    @abstractmethod
    def number_told(cls, output: int, value: float, width: int) -> str:
        """One of the W values of a member's answer, in words: "a logit of class 3 of 1.2"."""

    @classmethod
    @abstractmethod
    def change(cls, now: Array, then: Array) -> tuple[float, str]:
        """How far answers (B, W) lie from earlier ones of the same rows, and the quantity measured, in words."""

    @classmethod
    def gist(cls, answers: Array) -> Array:
        """The part of answers (B, W) that `refuse_other_meaning` needs, (B, …), since large splits hold too much."""
        return answers

    @classmethod
    @abstractmethod
    def refuse_other_meaning(
        cls, member: Member, gist: Array, labels: Array, classes: Sequence[str] | None, seen: bool
    ) -> str | None:
        """Raise EdistillError if labels show that answers do not mean what the settings say.

        Args:
            gist: (N, …), of a whole split.
            seen: whether the member may have been trained on these rows.

        Returns:
            A warning if answers may mean something else; None if not.
        """

    # --- answers: one per row, or one per position ----------------------------------------------------------------

    def each_answer(self, said: Tensor, labels: Tensor | None) -> Tensor:
        """Outputs for B rows, (B, M, *shape), as A single answers, (A, M, W); A = B without positions.

        Args:
            labels: of the rows; None if there are none. Positions with an ignored label are left out.
        """
        return said

    def each_label(self, labels: Tensor, counted: Tensor) -> Tensor:
        """The labels of B rows, one per answer; `counted` are the labels that say which positions count."""
        return labels

    def each_of_row(self, values: Tensor, labels: Tensor | None) -> Tensor:
        """One value per row, (B,), repeated for each of its answers, (A,)."""
        return values

    def answers_in(self, rows: int, labels: Array | None) -> int:
        """The number of answers in `rows` rows."""
        return rows

    # --- distributions ------------------------------------------------------------------------------------------

    @abstractmethod
    def members_family(self) -> Family:
        """The family of the members' answers."""

    def student_family(self, answers: Array | None, labels: Array | None, weights: Array | None = None) -> Family:
        """The family of a fresh student's heads, centered and scaled to what they are to learn.

        Args:
            answers: (N, M, W), the members' answers for some training rows; None for a student without teachers.
            labels: (N,) or (N, D), for a student without teachers; weights: the members', (M,) or (N, M).
        """
        return self.members_family()

    # --- figures ------------------------------------------------------------------------------------------------

    @abstractmethod
    def quality(self, predictive: Any, y: Tensor | None) -> Values:
        """What each distribution alone predicts and, with labels y, its mistakes; (B, M) each."""

    @abstractmethod
    def uncertainty(self, predictive: Any) -> Tensor:
        """The uncertainty of each distribution alone, (B, M)."""

    def each_uncertainty(self, predictive: Any, pooled: bool) -> Values:
        """The uncertainties of each of a row's answers, named by `EACH`: pooled, (B, D), or of members, (B, M, D)."""
        return {}  # a row has one answer

    def comparable(self, squares: NDArray[Any]) -> NDArray[Any]:
        """Squared errors or variances (N, …, D), in units that make several answers comparable."""
        return squares

    @abstractmethod
    def unit(self, ensemble: Mapping[str, NDArray[Any]]) -> float:
        """The unit in which errors of uncertainties are measured, from the ensemble's rows."""

    @abstractmethod
    def figures(self, rows: Mapping[str, NDArray[Any]]) -> Figures:
        """`figures_shown` from a model's values (N,); from members' values (N, M), the mean of each member's figure."""

    @classmethod
    def of_nll(cls, nll: float) -> dict[str, float]:
        """What is shown of the mean NLL while a student trains, by name."""
        return {"nll": nll}

    # --- serving ------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def tolerance(cls, name: str, outputs: Mapping[str, Array]) -> Array | float:
        """How far an output of an exported student may differ between two runtimes.

        Args:
            outputs: all outputs of the same rows, by name.
        """

    @classmethod
    def members_tolerance(cls, name: str, outputs: Mapping[str, Array], members: Sequence[Member]) -> Array | float:
        """`tolerance` for an exported ensemble, whose members may return larger or coarser numbers than a student."""
        return cls.tolerance(name, outputs)

    @abstractmethod
    def served(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The outputs of an exported student that `predict` needs, with their shapes for `rows` rows."""

    def each_served(
        self, names: Sequence[str], first_row: int, outputs: Mapping[str, Array], labels: Array | None
    ) -> tuple[Sequence[str], Mapping[str, Array]]:
        """The names and outputs of single answers, from those of rows.

        Args:
            first_row: the index of the first row.
            labels: the classes at the rows' positions; None if unknown or without positions.
        """
        return names, outputs

    @abstractmethod
    def usable(self, outputs: Mapping[str, Array]) -> Array:
        """Whether each answer's outputs can come from a student, (B,)."""

    @abstractmethod
    def predictions(self, outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """What `predict` writes for each answer, beside its name and uncertainties."""

    @abstractmethod
    def heads_served(self, outputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        """Each head's outputs, in the form that `predictions` takes; empty for a single head."""
