"""Merge a member's preprocessing from several sources; the first source to set a field wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.settings import PreprocessingSettings

OF_TEXTS = {"tokenizer", "length"}  # see `encodings`
Said = Mapping[str, Any]  # some of Preprocessing's fields


def from_settings(settings: PreprocessingSettings | None) -> Said:
    """The fields that `teachers.preprocessing` sets for pictures."""
    return {} if settings is None else settings.model_dump(exclude_none=True, exclude=OF_TEXTS)


def from_timm(config: Mapping[str, Any]) -> Said:
    """The fields that a timm data or pretrained config sets; absent, empty and null values set nothing.

    A mean or std with another number of channels than `input_size` is averaged, as in timm's loader.
    """
    said = {key: config[key] for key in ("interpolation", "crop_pct", "crop_mode") if config.get(key)}
    channels = None
    if config.get("input_size"):
        channels, *size = config["input_size"]
        said["size"] = tuple(size)
        if channels == 1:
            said["channels"] = 1  # pictures in color become gray, as timm's train.py opens them
    for key in ("mean", "std"):
        if config.get(key):
            values = tuple(float(value) for value in config[key])
            said[key] = values if channels is None else _for_channels(values, channels)
    return said


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(values) if len(values) in (1, channels) else (sum(values) / len(values),)


def settled(name: str, *sources: Said) -> Preprocessing:
    """Merge sources into a preprocessing; earlier sources take precedence.

    Args:
        name: the member's, for the message.
        sources: some fields of `Preprocessing` each.

    Raises:
        EdistillError: no source sets size, mean or std (interpolation and crop have defaults), or a value is out of
            its domain.
    """
    merged: dict[str, Any] = {}
    for said in sources:
        merged = {**said, **merged}
    missing = [key for key in ("size", "mean", "std") if key not in merged]
    if missing:
        raise EdistillError(
            f"{name}: preprocessing lacks {' and '.join(missing)}. Add to [teachers], for instance: "
            f"preprocessing = {{ size = [32, 32], mean = [0.5], std = [0.5] }}."
        )
    known = {field.name for field in fields(Preprocessing)}
    try:
        return Preprocessing(**{key: value for key, value in merged.items() if key in known})
    except EdistillError as error:
        raise EdistillError(f"{name}: {error}") from None
