"""Plain records that travel unchanged into cache manifests, run configs and ONNX metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import is_plain

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CROP_MODES = ("center", "squash", "border")
LARGE = 10**6  # beyond any level of pixels, which nan is, too
SIDE = 2**14  # the largest of a network's input, in pixels, as in the settings
FAINTEST = 1e-3  # factor of a calibration, and one over the greatest: what is fitted lies within a factor of 8
OUTPUTS = ("logits", "probabilities", "mean", "mean-variance", "mean-logvar")


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

    def is_what(self, record: Preprocessing | None) -> bool:
        """Whether it is what a record says, which may be older than `channels`."""
        return self == record or (
            record is not None and record.channels is None and replace(self, channels=None) == record
        )

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "channels" or value is not None}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `to_json`; lists become tuples so that records compare equal."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


@dataclass(frozen=True)
class Calibration:
    """What brings a student's uncertainty to its ensemble's; 1 everywhere changes nothing.

    Attributes:
        temperature: what logits are divided by.
        spread: what the heads' deviations from their mean are multiplied by; a Dirichlet's precision is divided by its
            square.
        variance: what the heads' own variances are multiplied by; for numbers only.
    """

    temperature: float = 1.0
    spread: float = 1.0
    variance: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, float) or not FAINTEST <= value <= 1 / FAINTEST:
                raise EdistillError(
                    f"A calibration's {name} is {value!r}. It is a number from {FAINTEST:g} to {1 / FAINTEST:g}: "
                    "calibrate again."
                )

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, float]) -> Calibration:
        """Raises TypeError where anything is missing: it was not fitted to be 1."""
        if record.keys() != asdict(cls()).keys():
            raise TypeError(f"it has {', '.join(record) or 'nothing'}, and not {', '.join(asdict(cls()))}")
        return cls(**{name: float(v) if type(v) is int else v for name, v in record.items()})


@dataclass(frozen=True)
class MadeFrom:
    """Of which student a file was made.

    Attributes:
        weights: the sha256 of the run's weights.
        calibration: what the run's predictions were corrected by; None for nothing.
    """

    weights: str
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> MadeFrom:
        """Raises ValueError, TypeError, LookupError or EdistillError for what `to_json` never wrote."""
        weights, calibration = record["weights"], record["calibration"]
        if not isinstance(weights, str):
            raise TypeError(f"weights are {weights!r}, and not a sha256")
        return cls(weights, None if calibration is None else Calibration.from_json(calibration))


@dataclass(frozen=True)
class Member:
    """One model of the ensemble, as recorded wherever its outputs go.

    Attributes:
        name: the checkpoint's file or folder name, unique in the ensemble.
        sha256: of its weights (names, shapes and bytes), so a copy under another name is recognized.
        output: what the module returns; see `OUTPUTS`.
        class_order: position j of its output is class `class_order[j]` of the data; None where equal.
        preprocessing: None for inputs that are not pixels.
        model: what builds the module: a timm name, `file.py:factory`, or "edistill run".
        units: mean and standard deviation of the target, where its outputs are standardized by them.
        variance: in the target's unit squared, of a member that returns a mean alone.
    """

    name: str
    sha256: str
    output: str = "logits"
    class_order: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    model: str = ""
    units: tuple[float, float] | None = None
    variance: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no record holds."""
        for what, holds in (
            ("its name can be that of a file", is_plain(self.name)),
            ("its sha256 is a text", isinstance(self.sha256, str)),
            (f"output is one of {', '.join(OUTPUTS)}", self.output in OUTPUTS),
            (
                "class_order has each position once",
                self.class_order is None or sorted(self.class_order) == list(range(len(self.class_order))),
            ),
        ):
            if not holds:
                raise ValueError(f"it does not hold of member {self.name!r} that {what}")

    @property
    def of_numbers(self) -> bool:
        """Whether it predicts a number, and not classes."""
        return self.output.startswith("mean")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"preprocessing": None if self.preprocessing is None else self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Member:
        order, preprocessing = record["class_order"], record["preprocessing"]
        units = record.get("units")  # a classifier's record may be older than this field and the next
        return cls(
            name=record["name"],
            sha256=record["sha256"],
            output=record["output"],
            class_order=None if order is None else tuple(order),
            preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
            model=record["model"],
            units=None if units is None else (units[0], units[1]),
            variance=record.get("variance"),
        )


@dataclass(frozen=True)
class Split:
    """One split as it was when cached.

    Attributes:
        rows: how many.
        digest, digest_scope: of the data, and what it covers; see `data/digests.py`.
        kind: pixels, tensor or features.
        transform, seed: of its views ("none" and 0 for splits that are only evaluated).
        labels: whether it has any.
    """

    rows: Annotated[int, Field(ge=1)]
    digest: str
    digest_scope: str
    kind: Literal["pixels", "tensor", "features"]
    transform: str = "none"
    seed: int = 0
    labels: bool = True


def numbered(count: int) -> tuple[str, ...]:
    """What classes are called where the data has no names for them."""
    return tuple(str(k) for k in range(count))


def names_in(classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The class names of a manifest or a config; None where the data had none, and they are numbers."""
    return None if classes == numbered(len(classes)) else classes
