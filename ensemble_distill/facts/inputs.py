"""What rows consist of, and how pixels and columns become a network's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from ensemble_distill.errors import EdistillError, first_few

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CROP_MODES = ("center", "squash", "border")
LARGE = 1e6  # greatest pixel level, number of minutes or weight of a loss term; nan fails the comparison too
SIDE = 2**14  # greatest side of a picture, in pixels

# kinds of inputs: pictures in [0, 1], arrays (C, H, W), vectors (F,), token ids (L,), arrays (C, L) and (C, D, H, W),
# texts, and several named ones of these end to end
Kind = Literal["pixels", "tensor", "features", "tokens", "series", "volume", "text", "several"]
RANKS: dict[Kind, int] = {
    "pixels": 3,
    "tensor": 3,
    "features": 1,
    "tokens": 1,
    "series": 2,
    "volume": 4,
    "text": 2,
    "several": 1,
}
Encoding = Literal["one-hot", "index"]  # a category as a one-hot vector, or as its position
EXACT = ConfigDict(extra="forbid")  # a later version's record with more keys must not be misread


@dataclass(frozen=True)
class Preprocessing:
    """How pixels in [0, 1] become a network's input, in timm's terms.

    Attributes:
        size: height and width of the network's input, in pixels.
        mean, std: one value per channel or one for all, for pixels scaled to [0, 1].
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop_pct: share of the resized image that the center crop keeps, in (0, 1].
        crop_mode: center (keep the ratio, crop), squash (stretch, crop) or border (fit, pad).
        channels: 1 for a network of gray pixels, for which pictures in color become gray. None lets the pixels decide,
            and stands in every record of version 0.1.0; see `is_what`.
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

    def is_what(self, record: object) -> bool:
        """Whether a record says the same; it may be older than `channels`."""
        if not isinstance(record, Preprocessing):
            return False
        return self == record or (record.channels is None and replace(self, channels=None) == record)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "channels" or value is not None}


@dataclass(frozen=True)
class InputColumns:
    """The columns of a table that make up a row, and how their values become numbers.

    Attributes:
        inputs: the columns with the numbers and categories that members are given, in order.
        categories: for each of these columns that does not hold numbers, its values in the order of their encoding.
        encoding: a category becomes a one-hot vector with a number for each value, or one number, its position.
        images: the column that names or holds a row's picture.
        text: the column with a row's text, or the two columns of a pair.
        array: the column with a row's array.

    A row with more than one of these consists of several arrays: `pixel_values` for pictures, `x` for numbers, `array`,
    and the fields of a text.
    """

    inputs: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoding: Encoding = "one-hot"
    images: str | None = field(default=None, kw_only=True)
    text: str | tuple[str, str] | None = field(default=None, kw_only=True)
    array: str | None = field(default=None, kw_only=True)

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raise ValueError for columns that cannot make up a row."""
        if not self.parts or len(set(self.inputs)) < len(self.inputs) or len(set(self.texts)) < len(self.texts):
            raise ValueError(
                f"a row is made of the columns {list(self.inputs)}, of pictures in {self.images}, of texts in "
                f"{self.text} and of arrays in {self.array}"
            )
        for name, values in self.categories.items():
            if name not in self.inputs or not values or len(set(values)) < len(values):
                raise ValueError(f"the column {name} does not take the values {list(values)}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The attributes that are set, in the order in which a network takes what they stand for."""
        return tuple(key for key in ("images", "text", "array", "inputs") if getattr(self, key) not in (None, ()))

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of the text: none, one, or two."""
        return () if self.text is None else (self.text,) if isinstance(self.text, str) else self.text

    @property
    def groups(self) -> tuple[int, ...]:
        """For each number of an input, the position of its column in `inputs`."""
        return tuple(at for at, name in enumerate(self.inputs) for _ in self._features(name))

    @property
    def places(self) -> tuple[bool, ...] | None:
        """Which numbers of an input are positions of categories, and must not be interpolated; None if none are."""
        places = tuple(
            self.encoding == "index" and name in self.categories for name in self.inputs for _ in self._features(name)
        )
        return places if any(places) else None

    @property
    def features(self) -> tuple[str, ...] | None:
        """The name of each number of an input: its column and, for a category, the value or values it stands for.

        None if a row has no numbers.
        """
        return tuple(feature for name in self.inputs for feature in self._features(name)) or None

    @property
    def told(self) -> str:
        """What a row is made of, in words."""
        made = {
            "images": f"pictures in {self.images}",
            "text": f"texts in {' and '.join(self.texts)}",
            "array": f"arrays in {self.array}",
            "inputs": first_few(self.features or (), 8),
        }
        return " beside ".join(made[key] for key in self.parts)

    def _features(self, name: str) -> list[str]:
        if name not in self.categories:
            return [name]
        values = self.categories[name]
        return [f"{name}={value}" for value in (values if self.encoding == "one-hot" else ["|".join(values)])]

    def to_json(self) -> dict[str, Any]:
        categories = {name: list(values) for name, values in self.categories.items()}
        numbers = {"inputs": list(self.inputs), "categories": categories, "encoding": self.encoding}
        return (
            ({} if self.images is None else {"images": self.images})
            | ({} if self.text is None else {"text": self.text if isinstance(self.text, str) else list(self.text)})
            | ({} if self.array is None else {"array": self.array})
            | (numbers if self.inputs else {})
        )
