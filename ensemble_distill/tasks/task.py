"""The questions that the rest of the house asks of a task, and that nobody answers elsewhere."""

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
    """A split, as far as a task looks at it."""

    @property
    def classes(self) -> tuple[str, ...] | None: ...  # names, where the data has any
    @property
    def labels(self) -> Array | None: ...


class Task(ABC):
    """What the answer of a row is: a frozen dataclass a file, whose fields are its classes or targets.

    What is known before data and members are opened are class attributes and class methods.

    Attributes:
        key: of `task = "…"`.
        called: what `names` are of: "classes".
        outputs: what members may return, `teachers.output`.
        own_output: which of those a run of edistill returns as a member.
        averages: how members may pool, `teachers.average`.
        dtypes: how records may be stored, the default first.
        format: how they are laid out, a file of `cache/formats/`.
        standardizes: whether members may return answers in another unit, `teachers.standardized`.
        one_class: whether an answer is one of several classes, told by probabilities that sum to 1.
        named: whether outputs go by the names that the data has for its classes.
        folders: whether folders of images say what their labels are.
        of_tokens: whether rows are ids of tokens, which are told position by position.
        answers_called: what is told apart, and counted in figures.
        softens: whether one temperature on teacher and student leaves the optimum of a loss where it is.
        solves: whether heads are solved for by least squares before their stage, if nothing else is asked for.
        says_labels: whether a head says what a label is, a number, and not how likely each is.
        shares_output: whether a student's output layer means what its teacher's does.
        figures_shown: the figures of quality and uncertainty, in the order of `evaluate`.
        uncertainties_told: what the uncertainties of a row are, in words.
        shifted_shown: those that `evaluate --shifts` tells in its table.
        predicted: the first words of the columns that `predict` writes behind a row's name, in their order.
        conformal: how sets or intervals are made; None where rows say nothing sure of others.
        exact: those whose numbers it writes to the last digit: far from 0 they differ in those.
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
        """Of its classes, labels or targets, in their order; none for a single target."""

    @property
    def data_names(self) -> tuple[str, ...] | None:
        """The names that the data has for its classes; None where it has none."""
        return None

    @property
    @abstractmethod
    def width(self) -> int:
        """W: how many numbers a member says of a row, as they are cached."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of these numbers: (W,), or (L, K) of positions."""
        return (self.width,)

    @property
    def smaller_records(self) -> str:
        """What makes a cache smaller, a sentence."""
        return "Lower views.count, name another output.cache, or make room."

    @property
    @abstractmethod
    def told(self) -> str:
        """What is predicted of a row, in words: "10 classes"."""

    @property
    @abstractmethod
    def uncertainty_unit(self) -> str:
        """For a table's heading."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """{"task", "classes", …}, as manifests, configs and exported files hold it."""

    def more_json(self) -> dict[str, Any]:
        """What `to_json` has beside the task and its names, for `inspect`."""
        return {key: value for key, value in self.to_json().items() if key not in ("task", "classes")}

    @classmethod
    @abstractmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises ValueError for what it never wrote."""

    @classmethod
    @abstractmethod
    def found(cls, splits: Mapping[str, Labeled], widths: Mapping[str, int], known: Self | None) -> Self:
        """The task as data and members have it.

        Args:
            splits: by name; labels of OOD splits mean nothing.
            widths: numbers that each member returns of a row, by its name.
            known: what a cache says that is there already.

        Raises:
            EdistillError: members, names or labels do not agree.
        """

    @abstractmethod
    def refuse_other_labels(self, source: Labeled, named: str, owner: str) -> None:
        """Raise EdistillError for a split whose labels cannot be answers of this task.

        Args:
            named: the split, "data.test"; owner: what has the task, a run's folder.
        """

    def refuse_others(self, members: Sequence[Member]) -> None:
        """Raise ValueError for members, of a record, that answer another task."""
        for member in members:
            if member.output not in self.outputs:
                raise ValueError(f"the task is {self.key}, and member {member.name} returns {member.output}")

    # --- labels -------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def as_labels(
        cls, y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
    ) -> Array:
        """Labels as the user stores them, checked and brought to one dtype: (rows,) or (rows, D).

        Args:
            rows: how many the data has.
            named: what `y` is, for messages.
            classes: the names that labels index, where there are any.
            first_row: the row that y[0] belongs to.

        Raises:
            EdistillError: another shape or dtype, or a value that no label has.
        """

    @classmethod
    @abstractmethod
    def counted(cls, labels: Array) -> int:
        """How many classes, labels or targets there are by what `as_labels` gave of one row or more, at the least."""

    # --- members ------------------------------------------------------------------------------------------------

    def order_in(self, owner: str, names: Sequence[str] | None, source: str) -> tuple[int, ...] | None:
        """For each of a student's outputs the index of what the data calls so; None where both are in one order.

        Args:
            owner: the student's name; source: where its own names stand, for messages.
            names: the data's; None where it has none.

        Raises:
            EdistillError: the two name different things.
        """
        return None if names is None else order_by_names(owner, self.names, names, source)

    @classmethod
    @abstractmethod
    def joined(cls, raw: Any, rows: int, member: Member) -> Tensor:
        """What a member returned of so many rows as one tensor (B, ·). Raises EdistillError when it is none."""

    @classmethod
    def is_joined(cls, raw: Any, rows: int, member: Member) -> bool:
        """Whether `joined` takes something that is not a tensor, such as a pair of them."""
        return False

    @classmethod
    @abstractmethod
    def answers(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """A member's output (B, ·) as the cache holds it, (B, W), in the order and unit of the data.

        Raises:
            EdistillError: an output is not finite, or is not what `teachers.output` says.
        """

    @classmethod
    @abstractmethod
    def as_answers(cls, raw: Tensor, member: Member) -> Tensor:
        """What `answers` makes of raw outputs (B, ·), (B, W), by torch alone: for a graph, which checks nothing."""

    @classmethod
    @abstractmethod
    def candidates(cls, parts: Sequence[Any], member: Member, rows: int, count: int | None) -> list[Any]:
        """Of the tensors in what a member returned (`Part`, each with a row for each of `rows`), its answer or answers.

        Args:
            count: of the data's classes or targets, where that is known.
        """

    @classmethod
    def refuse_unlikely(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> None:
        """Raise EdistillError for outputs of a few rows that are plainly something else than `teachers.output` says."""
        return None  # not every task has such

    @classmethod
    @abstractmethod
    def compared(cls, answers: Array) -> Array:
        """Answers (B, W) without what carries no meaning, as a constant on all logits does: so two are compared."""

    @classmethod
    @abstractmethod
    def magnitude(cls, answers: Array) -> float:
        """The number that rounding of answers (B, W) is a share of."""

    @classmethod
    @abstractmethod
    def apart(cls, first: Array, rounding: float) -> Apart:
        """How far answers (B, W), as `compared` gives them, may lie apart; `rounding` is that of single precision."""

    @classmethod
    @abstractmethod
    def number_told(cls, output: int, value: float, width: int) -> str:
        """One of the W numbers that a member says of a row, in words: "a logit of class 3 of 1.2"."""

    @classmethod
    @abstractmethod
    def change(cls, now: Array, then: Array) -> tuple[float, str]:
        """How far answers (B, W) of the same rows lie from those of before, and of what that is, in words."""

    @classmethod
    def gist(cls, answers: Array) -> Array:
        """The part of answers (B, W) that `refuse_other_meaning` needs, (B, …); all of a large split is too much."""
        return answers

    @classmethod
    @abstractmethod
    def refuse_other_meaning(
        cls, member: Member, gist: Array, labels: Array, classes: Sequence[str] | None, seen: bool
    ) -> str | None:
        """Raise EdistillError where labels show that answers mean something else than the settings say; return what to
        tell where they may.

        Args:
            gist: (N, …) of a whole split.
            seen: whether the member may have been trained on these rows.
        """

    # --- answers: a row has one, or one a position ----------------------------------------------------------------

    def each_answer(self, said: Tensor, labels: Tensor | None) -> Tensor:
        """What was said of B rows, (B, M, *shape), an answer a row, (A, M, W); A is B where a row has one.

        Args:
            labels: of the rows, where they have any: positions whose label is ignored are no answers.
        """
        return said

    def each_label(self, labels: Tensor, counted: Tensor) -> Tensor:
        """The labels of B rows, a label an answer; `counted` are those by which positions count."""
        return labels

    def each_of_row(self, values: Tensor, labels: Tensor | None) -> Tensor:
        """A value of each row, (B,), as one of each answer, (A,)."""
        return values

    def answers_in(self, rows: int, labels: Array | None) -> int:
        """How many answers rows have."""
        return rows

    # --- distributions ------------------------------------------------------------------------------------------

    @abstractmethod
    def members_family(self) -> Family:
        """What the members' answers are."""

    def student_family(self, answers: Array | None, labels: Array | None, weights: Array | None = None) -> Family:
        """What a fresh student's heads emit, in reach of what they are to learn from members of weights (M,) or (N, M).

        Args:
            answers: (N, M, W) what the members say of some training rows; None for a student without teachers.
            labels: (N,) or (N, D), of such a student.
        """
        return self.members_family()

    # --- figures ------------------------------------------------------------------------------------------------

    @abstractmethod
    def quality(self, predictive: Any, y: Tensor | None) -> Values:
        """Of each distribution by itself what it predicts and, with labels y, its mistakes; each (B, M)."""

    @abstractmethod
    def uncertainty(self, predictive: Any) -> Tensor:
        """Of each distribution by itself, (B, M)."""

    def each_uncertainty(self, predictive: Any, pooled: bool) -> Values:
        """The three uncertainties of each answer by itself, where a row has several: `EACH` names them, (B, D).

        Args:
            pooled: of all members together; else each member's own, (B, M, D).
        """
        return {}  # a row has one answer

    def comparable(self, squares: NDArray[Any]) -> NDArray[Any]:
        """Squared errors or variances (N, …, D), in units in which those of several answers can be compared."""
        return squares

    @abstractmethod
    def unit(self, ensemble: Mapping[str, NDArray[Any]]) -> float:
        """What uncertainties are measured in, from the ensemble's rows."""

    @abstractmethod
    def figures(self, rows: Mapping[str, NDArray[Any]]) -> Figures:
        """`figures_shown`, from rows (N,) of one model, or (N, M): the mean over members of each one's own."""

    @classmethod
    def of_nll(cls, nll: float) -> dict[str, float]:
        """What is told of the mean NLL while a student trains, by name."""
        return {"nll": nll}

    # --- serving ------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def tolerance(cls, name: str, outputs: Mapping[str, Array]) -> Array | float:
        """By how much an output of an exported student may differ between two runtimes.

        Args:
            outputs: all of the same rows, by name.
        """

    @classmethod
    def members_tolerance(cls, name: str, outputs: Mapping[str, Array], members: Sequence[Member]) -> Array | float:
        """The same of an exported ensemble, whose members may say larger numbers than a student, or coarser ones."""
        return cls.tolerance(name, outputs)

    @abstractmethod
    def served(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The outputs of an exported student that `predict` cannot do without, and their shapes for so many rows."""

    def each_served(
        self, names: Sequence[str], first_row: int, outputs: Mapping[str, Array], labels: Array | None
    ) -> tuple[Sequence[str], Mapping[str, Array]]:
        """The names of rows and their outputs, an answer each.

        Args:
            first_row: the first of them.
            labels: what stands at the positions of these rows, where rows have positions and that is known.
        """
        return names, outputs

    @abstractmethod
    def usable(self, outputs: Mapping[str, Array]) -> Array:
        """(B,) whether outputs can be those of a student."""

    @abstractmethod
    def predictions(self, outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """What `predict` writes of each row, beside its name and its uncertainties."""

    @abstractmethod
    def heads_served(self, outputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        """Outputs of each head, as `predictions` takes them; none of a single one."""
