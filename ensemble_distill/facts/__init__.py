"""Plain records that travel unchanged into cache manifests, run configs and ONNX metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from ensemble_distill.facts.inputs import CROP_MODES as CROP_MODES
from ensemble_distill.facts.inputs import EXACT as EXACT
from ensemble_distill.facts.inputs import INTERPOLATIONS as INTERPOLATIONS
from ensemble_distill.facts.inputs import LARGE as LARGE
from ensemble_distill.facts.inputs import RANKS as RANKS
from ensemble_distill.facts.inputs import SIDE as SIDE
from ensemble_distill.facts.inputs import Encoding as Encoding
from ensemble_distill.facts.inputs import InputColumns as InputColumns
from ensemble_distill.facts.inputs import Kind as Kind
from ensemble_distill.facts.inputs import Preprocessing as Preprocessing
from ensemble_distill.facts.several import AnyPreprocessing as AnyPreprocessing
from ensemble_distill.facts.several import Named as Named
from ensemble_distill.facts.several import Part as Part
from ensemble_distill.facts.several import RowArray as RowArray
from ensemble_distill.facts.several import Several as Several
from ensemble_distill.facts.several import difference as difference
from ensemble_distill.facts.several import named_in as named_in
from ensemble_distill.facts.several import same_rows as same_rows
from ensemble_distill.facts.texts import FIELDS as FIELDS
from ensemble_distill.facts.texts import LONGEST as LONGEST
from ensemble_distill.facts.texts import Tokenization as Tokenization
from ensemble_distill.facts.texts import Tokenizer as Tokenizer
from ensemble_distill.runtime.names import is_plain
from ensemble_distill.runtime.records import parsed

# least factor of a calibration; its inverse is the greatest. Fitted factors stay within 1/8 and 8, but for the spread
# that goes with a power
FAINTEST = 1e-3

# the split of training rows without views, each answered by the members that were not trained on it: teachers.folds
HELD_OUT = "held-out"
TRAINED = ("train", "transfer")  # the splits with views; members may have learned these rows, and views may mix them
SPLITS = ("train", "validation", "test", "calibration", "transfer")  # besides the out-of-distribution splits
ENSEMBLE = "ensemble"  # in place of a method, and in the folder's name, where the members themselves are exported

Size = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=FAINTEST, le=1 / FAINTEST)]
Power = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True)
class Calibration:
    """Corrections that bring a student's uncertainty to its ensemble's. Factors of 1 and a power of 0 change nothing.

    Attributes:
        temperature: divides logits.
        spread: multiplies the heads' deviations from their mean; a Dirichlet's precision is divided by its square.
        variance: multiplies the heads' own variances; for regression only.
        power: a row's spread is multiplied by (its total uncertainty ÷ its model uncertainty) to this power. Heads of a
            small student differ too little on rows where it is unsure.
    """

    temperature: Factor = 1.0
    spread: Factor = 1.0
    variance: Factor = 1.0
    power: Power = 0.0

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, record: Any) -> Any:
        """Raise ValueError for a missing factor, which must not pass for 1. A power may be missing; see `to_json`."""
        names = [field.name for field in fields(cls) if field.name != "power"]
        if isinstance(record, dict) and not record.keys() >= set(names):
            raise ValueError(f"it has {', '.join(record) or 'nothing'}, and not {', '.join(names)}")
        return record

    @property
    def told(self) -> str:
        """Its numbers in words."""
        return ", ".join(f"{name} {value:.4g}" for name, value in self.to_json().items())

    def to_json(self) -> dict[str, float]:
        """Its numbers by name, without a power of 0.

        Versions before 0.3 wrote no power, and what they exported must still match the calibration.
        """
        return {name: value for name, value in asdict(self).items() if name != "power" or value}

    @classmethod
    def from_json(cls, record: Mapping[str, float]) -> Calibration:
        """Inverse of `to_json`; raises ValueError for a record that it cannot have written."""
        return parsed(cls, record)


@dataclass(frozen=True)
class MadeFrom:
    """The student that a file was made from.

    Attributes:
        weights: the sha256 of the run's weights.
        calibration: the correction of the run's predictions; None without.
    """

    weights: str
    calibration: Calibration | None

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> MadeFrom:
        """Inverse of `to_json`; raises ValueError for a record that it cannot have written."""
        return parsed(cls, record)


# the fields of a member that its answers depend on: with another value it is another member
FACETS = ("sha256", "output", "class_order", "preprocessing", "model", "units", "variance")


@dataclass(frozen=True)
class Member:
    """One model of the ensemble, as recorded wherever its outputs go.

    Attributes:
        name: the checkpoint's file or folder name or the key in `teachers.hub`, unique in the ensemble.
        sha256: of its weights or files, so that a copy under another name is recognized.
        output: what the member returns; see `Task.outputs`.
        class_order: position j of its output is class `class_order[j]` of the data; None if the orders are equal.
        preprocessing: how rows become its inputs; None for arrays passed unchanged, and for ready-made outputs.
        model: what builds the member: a timm name, `file.py:factory`, "edistill run", or the file's own name.
        units: mean and standard deviation of the target if its outputs are standardized by them; a tuple each for
            several targets.
        variance: in the target's unit squared, for a member that returns a mean alone; a tuple for several targets.
    """

    name: str
    sha256: str
    output: str = "logits"
    class_order: tuple[int, ...] | None = None
    preprocessing: AnyPreprocessing | None = None
    model: str = ""
    units: tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]] | None = None
    variance: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a name or a class order that no member can have."""
        if not is_plain(self.name):
            raise ValueError(f"a member is named {self.name!r}, and its name is to be that of a file")
        if self.class_order is not None and sorted(self.class_order) != list(range(len(self.class_order))):
            raise ValueError(f"the class_order of member {self.name} is {self.class_order}: give each position once")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"preprocessing": None if self.preprocessing is None else self.preprocessing.to_json()}


@dataclass(frozen=True)
class Split:
    """One split as it was when cached.

    Attributes:
        rows: the number of its rows.
        digest, digest_scope: the digest of its data, and what the digest covers; see `data/digests.py`.
        kind: what its rows are; see `Kind`.
        transform, seed: how its views are made; "none" and 0 for splits that are only evaluated.
        labels: whether its rows have labels.
    """

    rows: Size
    digest: str
    digest_scope: str
    kind: Kind
    transform: str = "none"
    seed: int = 0
    labels: bool = True


def numbered(count: int) -> tuple[str, ...]:
    """The names of classes that the data does not name."""
    return tuple(str(k) for k in range(count))


def names_in(classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The class names of a manifest or a config; None for classes called 0, 1, …, which the data did not name."""
    return None if classes == numbered(len(classes)) else classes


def split_key(name: str) -> str:
    """The settings key that defines the rows of a split."""
    return "teachers.folds" if name == HELD_OUT else f"data.{name.replace('/', '.')}"
