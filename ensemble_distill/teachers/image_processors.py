"""Translate a `preprocessor_config.json` of transformers into timm's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
# options that change pixels in ways `Preprocessing` does not have
ODD = ("do_pad", "do_flip_channel_order", "do_reduce_labels", "rescale_offset", "include_top", "do_color_quantize")
SMALL = 384  # ConvNeXt: for smaller inputs pictures are resized larger and cropped, for others squashed
Said = dict[str, Any]


def from_processor(file: Path, config: Any) -> Said:
    """The fields of `Preprocessing` that a processor's config sets.

    Args:
        file: path of the config, for messages.
        config: the parsed file.

    Raises:
        EdistillError: it is not a table, or prepares pictures in a way that `Preprocessing` does not have.
    """
    if not isinstance(config, dict):
        raise EdistillError(f"{file} is not a table. Restore it: processor.save_pretrained(folder).")
    if odd := next((key for key in ODD if config.get(key)), None):
        raise _other(file, odd, config[odd])
    said = {"interpolation": RESAMPLE.get(config.get("resample", 2), "bilinear"), **_moments(file, config)}
    size = _lengths(config.get("size"))
    cropped = _lengths(config.get("crop_size")) if config.get("do_center_crop") else None
    if config.get("do_resize", True) is False:
        if cropped is not None:
            raise _other(file, "do_resize", "false, and do_center_crop true")
        return said | ({"size": size} if isinstance(size, tuple) else {})
    if isinstance(size, int) and isinstance(config.get("crop_pct"), int | float) and cropped is None:
        return said | _convnext(size, float(config["crop_pct"]))
    if size is None:
        return said
    if cropped is None:
        if isinstance(size, int):
            raise _other(file, "size", config.get("size"))
        return said | {"size": size, "crop_pct": 1.0, "crop_mode": "squash"}
    cropped = (cropped, cropped) if isinstance(cropped, int) else cropped
    if isinstance(size, int):
        if cropped[0] != cropped[1] or cropped[0] > size:
            raise _other(file, "crop_size", config.get("crop_size"))
        return said | {"size": cropped, "crop_pct": _share(cropped[0], size), "crop_mode": "center"}
    shares = {_share(crop, whole) for crop, whole in zip(cropped, size, strict=True) if crop <= whole}
    if len(shares) != 1 or any(crop > whole for crop, whole in zip(cropped, size, strict=True)):
        raise _other(file, "crop_size", config.get("crop_size"))
    return said | {"size": cropped, "crop_pct": shares.pop(), "crop_mode": "squash"}


def _convnext(size: int, share: float) -> Said:
    if size >= SMALL:
        return {"size": (size, size), "crop_pct": 1.0, "crop_mode": "squash"}
    return {"size": (size, size), "crop_pct": _share(size, int(size / share)), "crop_mode": "center"}


def _moments(file: Path, config: Mapping[str, Any]) -> Said:
    """The mean and std that the config sets, for pixels in [0, 1]."""
    factor = config.get("rescale_factor", 1 / 255)
    if config.get("do_rescale", True) is False or not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        raise _other(file, "rescale_factor", factor if config.get("do_rescale", True) else "unused")
    if config.get("do_normalize", True) is False:
        return {"mean": (0.0,), "std": (1.0,)}
    found = {ours: config.get(theirs) for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))}
    for key, values in found.items():
        if values is not None and not (isinstance(values, list) and all(isinstance(n, int | float) for n in values)):
            raise _other(file, f"image_{key}", values)
    return {key: tuple(float(n) for n in values) for key, values in found.items() if values is not None}


def _lengths(size: Any) -> tuple[int, int] | int | None:
    """(height, width), or the length of the shorter side; None for anything else."""
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size)
    if not isinstance(size, dict):
        return None
    if isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
        return size["height"], size["width"]
    shortest = size.get("shortest_edge")
    return shortest if isinstance(shortest, int) and set(size) == {"shortest_edge"} else None


def _share(crop: int, whole: int) -> float:
    """crop ÷ whole, rounded such that floor(crop ÷ share) gives back `whole`."""
    share = crop / whole
    while math.floor(crop / share) < whole:
        share = math.nextafter(share, 0)
    return share


def _other(file: Path, key: str, value: Any) -> EdistillError:
    return EdistillError(
        f"{file} says {key} = {value}, and nothing here prepares pictures so. Take the file out, and say in "
        "teachers.preprocessing what comes nearest: size, mean, std, interpolation, crop-pct and crop-mode."
    )
