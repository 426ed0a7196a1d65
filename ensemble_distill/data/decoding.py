"""Decodes pictures to 8-bit pixels as torchvision and timm do, except that values they would clip are scaled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ensemble_distill.data.source import Array

SCALED = ("PNG", "PPM")  # formats whose gray beyond 8 bits Pillow scales to 16


def read_image(file: Path | IO[bytes]) -> Array:
    """The pixels of an image file, uint8 (H, W, 3). Its orientation tag is ignored, as by timm and torchvision.

    Raises:
        Exception: whatever Pillow's decoders raise; ValueError if it is not a picture, or its white is unknown.
    """
    with warnings.catch_warnings():
        # Pillow warns at half the size that it refuses; the user chose the file and needs no warning
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(file)
        except UnidentifiedImageError:  # its message would name an object in memory
            raise ValueError("it is not a picture of a format that Pillow knows") from None
        with opened as image:
            return np.asarray(as_color(image))


def as_color(image: Image.Image) -> Image.Image:
    """The image in mode RGB. Alpha is dropped, and transparent pixels keep their colors.

    Raises:
        ValueError: nothing says which value is white.
    """
    image = in_eight_bits(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colors, without Pillow's warning
    return image.convert("RGB")


def in_eight_bits(image: Image.Image) -> Image.Image:
    """The image; 16-bit gray becomes 8-bit gray, mode L, rounded to the nearest, so that white stays white.

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
    """Bits of a pixel's gray in the file. Pillow gives the 12 bits of a TIFF unscaled in 16."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, 16)
    return int(bits[0] if isinstance(bits, tuple) else bits)
