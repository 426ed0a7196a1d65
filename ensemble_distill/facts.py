"""Plain records that travel unchanged into cache manifests, run configs and ONNX metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import is_plain
from ensemble_distill.runtime.records import parsed

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CROP_MODES = ("center", "squash", "border")
LARGE = 10**6  # beyond any level of pixels, which nan is, too
SIDE = 2**14  # the largest of a network's input, in pixels, as in the settings
FAINTEST = 1e-3  # factor of a calibration, and one over the greatest: what is fitted lies within a factor of 8

# the split of the training rows as they are, each answered by the members that were not trained on it: teachers.folds
HELD_OUT = "held-out"
ENSEMBLE = "ensemble"  # stands for a method where the members themselves were exported, and in their folder's name

# of inputs: pictures in [0, 1], arrays (C, H, W), vectors, ids of tokens (L,), arrays (C, L) and (C, D, H, W), texts
Kind = Literal["pixels", "tensor", "features", "tokens", "series", "volume", "text"]
RANKS: dict[Kind, int] = {"pixels": 3, "tensor": 3, "features": 1, "tokens": 1, "series": 2, "volume": 4, "text": 2}
FIELDS = ("input_ids", "attention_mask", "token_type_ids")  # what a tokenizer makes of a text, as networks name it
LONGEST = 2**16  # tokens that a text is cut to at most
Size = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=FAINTEST, le=1 / FAINTEST)]
Encoding = Literal["one-hot", "index"]  # a category as so many numbers, one of them 1, or as one, its place
EXACT = ConfigDict(extra="forbid")  # of records that no later version may have more to say in


@dataclass(frozen=True)
class Preprocessing:
    """How pixels in [0, 1] become a network's input, in timm's terms.

    Attributes:
        size: height and width the network sees, in pixels.
        mean, std: one value per channel (or one for all), of pixels scaled to [0, 1].
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop_pct: share of the resized image that the center crop keeps, in (0, 1].
        crop_mode: center (keep the ratio, crop), squash (stretch, crop) or border (fit, pad).
        channels: 1 for a network of gray pixels, whose pictures in color become gray; None where the pixels decide, and
            in every record of version 0.1.0: see `is_what`.
    """

    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    channels: int | None = None

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        lists = (self.size, self.mean, self.std)
        if not all(isinstance(values, tuple | list) and values for values in lists):
            raise EdistillError(f"preprocessing holds {lists}. Give lists of numbers for size, mean and std.")
        numbers = (*self.size, *self.mean, *self.std, self.crop_pct)
        if any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) <= LARGE for n in numbers):
            raise EdistillError(f"preprocessing holds {numbers}. Give numbers for size, mean, std and crop-pct.")
        if len(self.size) != 2 or not 1 <= min(self.size) <= max(self.size) <= SIDE:
            raise EdistillError(
                f"preprocessing.size is {list(self.size)}. Give height and width, [224, 224], each at most {SIDE}."
            )
        if min(self.std, default=0.0) <= 0:
            raise EdistillError(
                f"preprocessing.std is {list(self.std)}. Every standard deviation is above 0: "
                "they are those of pixels scaled to [0, 1]."
            )
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise EdistillError(
                f"preprocessing.mean has {len(self.mean)} channels and std has {len(self.std)}. "
                "Give both the same number of channels, or one value for all."
            )
        if not 0 < self.crop_pct <= 1:
            raise EdistillError(f"preprocessing.crop-pct is {self.crop_pct}. Give a share above 0, at most 1.")
        if self.interpolation not in INTERPOLATIONS:
            raise EdistillError(
                f"preprocessing.interpolation is {self.interpolation!r}. Use one of {', '.join(INTERPOLATIONS)}."
            )
        if self.crop_mode not in CROP_MODES:
            raise EdistillError(f"preprocessing.crop-mode is {self.crop_mode!r}. Use one of {', '.join(CROP_MODES)}.")
        if self.channels not in (None, 1) or (self.channels == 1 and max(len(self.mean), len(self.std)) > 1):
            raise EdistillError(
                f"preprocessing is of {self.channels} channel, with mean {list(self.mean)} and std {list(self.std)}. "
                "Give one value each."
            )

    def is_what(self, record: AnyPreprocessing | None) -> bool:
        """Whether it is what a record says, which may be older than `channels`."""
        if not isinstance(record, Preprocessing):
            return False
        return self == record or (record.channels is None and replace(self, channels=None) == record)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "channels" or value is not None}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `to_json`. Raises ValueError for what it never wrote."""
        return parsed(cls, record)


@dataclass(frozen=True)
class InputColumns:
    """Which columns of a table a row is made of, and how their values become numbers.

    Attributes:
        inputs: the columns that members are given, in their order.
        categories: of those that hold no numbers, the values in the order in which they are encoded.
        encoding: a category becomes as many numbers as it has values, one of them 1, or one number, its place.
        images: instead of all these, the column that names or holds a row's picture.
        text: instead of these, the column that holds a row's text.
        array: instead of these, the column that holds a row's array.
    """

    inputs: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoding: Encoding = "one-hot"
    images: str | None = field(default=None, kw_only=True)
    text: str | None = field(default=None, kw_only=True)
    array: str | None = field(default=None, kw_only=True)

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raises ValueError for what no settings hold."""
        made_of = [bool(self.inputs), *(one is not None for one in (self.images, self.text, self.array))]
        if sum(made_of) != 1 or len(set(self.inputs)) < len(self.inputs):
            raise ValueError(
                f"a row is made of the columns {list(self.inputs)}, of pictures in {self.images}, of texts in "
                f"{self.text} and of arrays in {self.array}"
            )
        for name, values in self.categories.items():
            if name not in self.inputs or not values or len(set(values)) < len(values):
                raise ValueError(f"the column {name} is no input of the values {list(values)}")

    @property
    def groups(self) -> tuple[int, ...]:
        """For each number of an input the place of the column that it comes from."""
        return tuple(at for at, name in enumerate(self.inputs) for _ in self._features(name))

    @property
    def features(self) -> tuple[str, ...] | None:
        """What each number of an input is called: its column, and of a category the value or values it stands for.
        None where it is a picture, a text or an array."""
        return tuple(feature for name in self.inputs for feature in self._features(name)) or None

    @property
    def told(self) -> str:
        """What a row is made of, where that is no numbers."""
        what = {"pictures": self.images, "texts": self.text, "arrays": self.array}
        return next(f"{kind} in {column}" for kind, column in what.items() if column is not None)

    def _features(self, name: str) -> list[str]:
        if name not in self.categories:
            return [name]
        values = self.categories[name]
        return [f"{name}={value}" for value in (values if self.encoding == "one-hot" else ["|".join(values)])]

    def to_json(self) -> dict[str, Any]:
        for key in ("images", "text", "array"):
            if (column := getattr(self, key)) is not None:
                return {key: column}
        kinds = {name: list(values) for name, values in self.categories.items()}
        return {"inputs": list(self.inputs), "categories": kinds, "encoding": self.encoding}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> InputColumns:
        """Inverse of `to_json`. Raises ValueError for what it never wrote."""
        return parsed(cls, record)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library, equal to another of the same text.

    Attributes:
        sha256: of the text.
        content: a `tokenizer.json`; None where a record only names it.
    """

    sha256: str
    content: str | None = field(default=None, compare=False, repr=False)

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raises ValueError where the text is another."""
        if self.content is not None and (found := _sha256(self.content)) != self.sha256:
            raise ValueError(f"a tokenizer is {found[:12]}…, and is to be {self.sha256[:12]}…")

    @classmethod
    def of(cls, content: str) -> Tokenizer:
        return cls(_sha256(content), content)


@dataclass(frozen=True)
class Tokenization:
    """How a text becomes a network's input: as many rows of whole numbers as there are fields, of equal length.

    Attributes:
        tokenizer: cuts it into tokens, and adds those that a network wants before and after.
        length: L; a longer text is cut, a shorter one padded behind.
        fields: some of `FIELDS`, in the order in which the rows stand.
        pad: the id of what is padded with, which the attention mask leaves out.
    """

    tokenizer: Tokenizer
    length: Annotated[int, Field(ge=1, le=LONGEST)]
    fields: Annotated[tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...], Field(min_length=1)]
    pad: Annotated[int, Field(ge=0)] = 0

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raises ValueError for fields of which one stands twice."""
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields are {list(self.fields)}: name each once")

    def is_what(self, record: AnyPreprocessing | None) -> bool:
        """Whether it is what a record says."""
        return self == record

    @property
    def shape(self) -> tuple[int, int]:
        """Of a row's input."""
        return len(self.fields), self.length

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _of_what(preprocessing: Any) -> str:
    """A damaged record is told of as what it was written as."""
    record = isinstance(preprocessing, Mapping) and "tokenizer" in preprocessing
    return "<texts>" if record or isinstance(preprocessing, Tokenization) else "<pixels>"


AnyPreprocessing = Annotated[
    Annotated[Preprocessing, Tag("<pixels>")] | Annotated[Tokenization, Tag("<texts>")], Discriminator(_of_what)
]


def tokenization_in(preprocessing: AnyPreprocessing | None) -> Tokenization | None:
    """It, where it is one of texts."""
    return preprocessing if isinstance(preprocessing, Tokenization) else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Calibration:
    """What brings a student's uncertainty to its ensemble's; 1 everywhere changes nothing.

    Attributes:
        temperature: what logits are divided by.
        spread: what the heads' deviations from their mean are multiplied by; a Dirichlet's precision is divided by its
            square.
        variance: what the heads' own variances are multiplied by; for regression alone.
    """

    temperature: Factor = 1.0
    spread: Factor = 1.0
    variance: Factor = 1.0

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, record: Any) -> Any:
        """Raises ValueError where a factor is missing: it was not fitted to be 1."""
        names = [field.name for field in fields(cls)]
        if isinstance(record, dict) and not record.keys() >= set(names):
            raise ValueError(f"it has {', '.join(record) or 'nothing'}, and not {', '.join(names)}")
        return record

    @property
    def told(self) -> str:
        """Its factors in words."""
        return ", ".join(f"{name} {value:.4g}" for name, value in self.to_json().items())

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, float]) -> Calibration:
        """Inverse of `to_json`. Raises ValueError for what it never wrote."""
        return parsed(cls, record)


@dataclass(frozen=True)
class MadeFrom:
    """Of which student a file was made.

    Attributes:
        weights: the sha256 of the run's weights.
        calibration: what the run's predictions were corrected by; None for nothing.
    """

    weights: str
    calibration: Calibration | None

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> MadeFrom:
        """Inverse of `to_json`. Raises ValueError for what it never wrote."""
        return parsed(cls, record)


@dataclass(frozen=True)
class Member:
    """One model of the ensemble, as recorded wherever its outputs go.

    Attributes:
        name: the checkpoint's file or folder name, unique in the ensemble.
        sha256: of its weights (names, shapes and bytes), so a copy under another name is recognized.
        output: what the module returns; see `Task.outputs`.
        class_order: position j of its output is class `class_order[j]` of the data; None where equal.
        preprocessing: None for inputs that are neither pixels nor texts.
        model: what builds the module: a timm name, `file.py:factory`, or "edistill run".
        units: mean and standard deviation of the target, where its outputs are standardized by them; a tuple each of
            several targets.
        variance: in the target's unit squared, of a member that returns a mean alone.
    """

    name: str
    sha256: str
    output: str = "logits"
    class_order: tuple[int, ...] | None = None
    preprocessing: AnyPreprocessing | None = None
    model: str = ""
    units: tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]] | None = None
    variance: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no record holds."""
        if not is_plain(self.name):
            raise ValueError(f"a member is named {self.name!r}, and its name is to be that of a file")
        if self.class_order is not None and sorted(self.class_order) != list(range(len(self.class_order))):
            raise ValueError(f"the class_order of member {self.name} is {self.class_order}: give each position once")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"preprocessing": None if self.preprocessing is None else self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Member:
        """Inverse of `to_json`; a record may be older than `units` and `variance`. Raises ValueError for others."""
        return parsed(cls, record)


@dataclass(frozen=True)
class Split:
    """One split as it was when cached.

    Attributes:
        rows: how many.
        digest, digest_scope: of the data, and what it covers; see `data/digests.py`.
        kind: what its rows are; see `Kind`.
        transform, seed: of its views ("none" and 0 for splits that are only evaluated).
        labels: whether it has any.
    """

    rows: Size
    digest: str
    digest_scope: str
    kind: Kind
    transform: str = "none"
    seed: int = 0
    labels: bool = True


def numbered(count: int) -> tuple[str, ...]:
    """What classes are called where the data has no names for them."""
    return tuple(str(k) for k in range(count))


def names_in(classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The class names of a manifest or a config; None where the data had none, and they are called 0, 1, …."""
    return None if classes == numbered(len(classes)) else classes


def split_key(name: str) -> str:
    """The key of the settings that says which rows a split has."""
    return "teachers.folds" if name == HELD_OUT else f"data.{name.replace('/', '.')}"
