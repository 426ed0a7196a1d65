"""Pictures as 8-bit pixels: as torchvision and timm load them, and what those would clip is scaled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ensemble_distill.data.source import Array

SCALED = ("PNG", "PPM")  # formats whose gray beyond 8 bits Pillow gives in the range of 16


def read_image(file: Path | IO[bytes]) -> Array:
    """uint8 (H, W, 3) of an image file. What it says of its orientation is left aside, as timm and torchvision do.

    Raises:
        Exception: whatever Pillow's decoders raise, and ValueError for what is no picture, or has no known white.
    """
    with warnings.catch_warnings():
        # it warns of half of what it refuses, and who names the file need not be warned
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(file)
        except UnidentifiedImageError:  # names the object in memory that the bytes are in
            raise ValueError("it is not a picture of a format that Pillow knows") from None
        with opened as image:
            return np.asarray(as_color(image))


def as_color(image: Image.Image) -> Image.Image:
    """In mode RGB; what is transparent loses its alpha and keeps its color.

    Raises:
        ValueError: nothing says which value is white.
    """
    image = in_eight_bits(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colors, without Pillow's warning
    return image.convert("RGB")


def in_eight_bits(image: Image.Image) -> Image.Image:
    """The image, or where its gray has 16 bits that gray in 8, mode L, rounded to the nearest: white stays white.

    Raises:
        ValueError: nothing says which value is white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in SCALED)
    if not sixteen or _bits(image) != 16:
        raise ValueError(
            f"its pixels are of mode {image.mode}, and nothing says which value is white: store 8 or 16 bits a pixel"
        )
    return Image.fromarray(np.rint(np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))


def _bits(image: Image.Image) -> int:
    """Of a pixel's gray in the file; 12 of a TIFF come unscaled in 16."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, 16)
    return int(bits[0] if isinstance(bits, tuple) else bits)
