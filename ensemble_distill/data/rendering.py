"""From pixels to a network's input: resize and crop as timm evaluates, scale to [0, 1], normalize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def as_unit(pixels: Array) -> Array:
    """Pixels scaled to [0, 1]: uint8 becomes float32, divided by 255; floats stay as they are."""
    if pixels.dtype != np.uint8:
        return pixels
    unit: Array = pixels.astype(np.float32)
    unit /= np.float32(255)
    return unit


def render(pixels: Array, to: Preprocessing) -> Array:
    """Resize and crop, before normalization.

    uint8 pixels come out as from timm's `transforms_imagenet_eval`. Floats, which only distorted images are,
    go through the same filters at full precision and are clamped, since bicubic and Lanczos overshoot.

    Args:
        pixels: (H, W, C), uint8 or float32 in [0, 1].
        to: the preprocessing. One channel is repeated to as many as its mean or std has; three become gray if it is of
            one channel.

    Returns:
        float32 (C, *to.size), contiguous, in [0, 1].

    Raises:
        EdistillError: mean or std has neither one entry nor one per channel.
    """
    pixels = as_gray(pixels) if to.channels == 1 else _with_channels(pixels, max(len(to.mean), len(to.std)))
    height, width = pixels.shape[:2]
    frame = _frame(height, width, to)
    if frame is not None:
        if frame.resized != (height, width):
            pixels = _resize(pixels, frame.resized, _FILTERS[to.interpolation])
        if frame.padded is not None:
            pixels = _pad(pixels, *frame.padded, to.mean)
        pixels = pixels[frame.rows, frame.columns]
    return as_unit(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def normalize(x: Array, to: Preprocessing) -> Array:
    """(x − mean) ÷ std for x (C, H, W) in [0, 1], float32."""
    mean, std = _moments(to)
    normalized: Array = x - mean
    normalized /= std
    return normalized


@lru_cache(maxsize=64)
def _moments(to: Preprocessing) -> tuple[Array, Array]:
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (to.mean, to.std))
    return mean, std


def as_gray(pixels: Array) -> Array:
    """Three channels as their luma, as Pillow and so timm compute it; any other number stays as it is."""
    if pixels.shape[2] != 3:
        return pixels
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    luma: Array = pixels @ np.array([0.299, 0.587, 0.114], dtype=pixels.dtype)
    return luma[:, :, None]


def _with_channels(pixels: Array, channels: int) -> Array:
    found = pixels.shape[2]
    if channels in (1, found):
        return pixels
    if found == 1:
        return np.repeat(pixels, channels, axis=2)
    raise EdistillError(
        f"The images have {found} channels, but preprocessing.mean or std has {channels}. Give one value a "
        "channel, or one for all."
    )


@dataclass(frozen=True)
class _Frame:
    """Where the network's input lies in an image: resized, then padded, then cropped."""

    resized: tuple[int, int]
    padded: tuple[tuple[int, int], tuple[int, int]] | None  # size of the canvas, place of the image's corner
    rows: slice
    columns: slice


@lru_cache(maxsize=4096)
def _frame(height: int, width: int, to: Preprocessing) -> _Frame | None:
    """The arithmetic of timm's three crop modes; None if they leave an image of that size as it is."""
    scaled = tuple(math.floor(length / to.crop_pct) for length in to.size)
    if to.crop_mode == "squash":
        resized = scaled
    elif to.crop_mode == "center" and scaled[0] == scaled[1]:
        short = min(height, width)  # torchvision resizes the shorter side to the length, and rounds the other down
        resized = tuple(int(scaled[0] * side / short) for side in (height, width))
    else:
        ratios = height / scaled[0], width / scaled[1]
        ratio = max(ratios) if to.crop_mode == "border" else min(ratios)
        resized = tuple(max(1, round(side / ratio)) for side in (height, width))
    canvas = tuple(max(side, length) for side, length in zip(resized, to.size, strict=True))
    corner = tuple((whole - side) // 2 for whole, side in zip(canvas, resized, strict=True))
    # round() is to even at .5, as in torchvision's center crop
    top, left = (round((whole - length) / 2) for whole, length in zip(canvas, to.size, strict=True))
    if resized == canvas == to.size == (height, width):
        return None
    return _Frame(
        resized=(resized[0], resized[1]),
        padded=None if canvas == resized else ((canvas[0], canvas[1]), (corner[0], corner[1])),
        rows=slice(top, top + to.size[0]),
        columns=slice(left, left + to.size[1]),
    )


def _resize(pixels: Array, size: tuple[int, int], resample: Image.Resampling) -> Array:
    """Pillow's resize of (H, W, C), a channel at a time where Pillow has no mode for all channels together."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize(size[::-1], resample))
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize(size[::-1], resample))
        for c in range(pixels.shape[2])
    ]
    resized = np.stack(channels, axis=2)
    return resized if pixels.dtype == np.uint8 else resized.clip(0, 1)


def _pad(pixels: Array, size: tuple[int, int], corner: tuple[int, int], mean: tuple[float, ...]) -> Array:
    """The image on a canvas of the mean color, rounded to 8 bits as timm does."""
    color = np.clip([round(255 * value) for value in mean], 0, 255)
    canvas = np.empty((*size, pixels.shape[2]), dtype=pixels.dtype)
    canvas[:] = color if pixels.dtype == np.uint8 else color / 255
    canvas[corner[0] : corner[0] + pixels.shape[0], corner[1] : corner[1] + pixels.shape[1]] = pixels
    return canvas
