"""What rows are made of, and how they become a network's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from ensemble_distill.errors import EdistillError, first_few

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CROP_MODES = ("center", "squash", "border")
LARGE = 1e6  # levels of pixels, minutes, and weights of terms of a loss; nan is beyond it, too
SIDE = 2**14  # of a picture, in pixels

# of inputs: pictures in [0, 1], arrays (C, H, W), vectors, ids of tokens (L,), arrays (C, L) and (C, D, H, W), texts,
# and several of these by their names, end to end
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

    def is_what(self, record: object) -> bool:
        """Whether it is what a record says, which may be older than `channels`."""
        if not isinstance(record, Preprocessing):
            return False
        return self == record or (record.channels is None and replace(self, channels=None) == record)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "channels" or value is not None}


@dataclass(frozen=True)
class InputColumns:
    """Which columns of a table a row is made of, and how their values become numbers.

    Attributes:
        inputs: the columns that members are given, in their order.
        categories: of those that hold no numbers, the values in the order in which they are encoded.
        encoding: a category becomes as many numbers as it has values, one of them 1, or one number, its place.
        images: the column that names or holds a row's picture.
        text: the column that holds a row's text, or the two of a pair.
        array: the column that holds a row's array.

    A row of more than one of these is several arrays: pictures `pixel_values`, numbers `x`, an
    `array`, and what a text becomes.
    """

    inputs: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoding: Encoding = "one-hot"
    images: str | None = field(default=None, kw_only=True)
    text: str | tuple[str, str] | None = field(default=None, kw_only=True)
    array: str | None = field(default=None, kw_only=True)

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def __post_init__(self) -> None:
        """Raises ValueError for what no settings hold."""
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
        """What a row is made of, by the attribute that says so, in the order in which a network is given it."""
        return tuple(key for key in ("images", "text", "array", "inputs") if getattr(self, key) not in (None, ()))

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of the text: none, one, or two."""
        return () if self.text is None else (self.text,) if isinstance(self.text, str) else self.text

    @property
    def groups(self) -> tuple[int, ...]:
        """For each number of an input the place of the column that it comes from."""
        return tuple(at for at, name in enumerate(self.inputs) for _ in self._features(name))

    @property
    def places(self) -> tuple[bool, ...] | None:
        """Which numbers of an input are places of categories, between two of which there is none; None where none
        is."""
        places = tuple(
            self.encoding == "index" and name in self.categories for name in self.inputs for _ in self._features(name)
        )
        return places if any(places) else None

    @property
    def features(self) -> tuple[str, ...] | None:
        """What each number of an input is called: its column, and of a category the value or values it stands for.
        None where it is none of numbers."""
        return tuple(feature for name in self.inputs for feature in self._features(name)) or None

    @property
    def told(self) -> str:
        """What a row is made of."""
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
