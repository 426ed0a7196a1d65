"""Pictures of every mode in files, and their pixels stored without the pass that does so."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import CLASSES, ROWS, examples, make_folder

from ensemble_distill.data.decoded import Decoded, open_pictures
from ensemble_distill.data.decoded_blocks import Blocks, cut
from ensemble_distill.data.source import Array, Source

RNG = np.random.default_rng(5)


def color(height: int = 6, width: int = 6) -> Array:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, form: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def turned() -> bytes:
    image = Image.fromarray(color(7, 5))
    image.getexif()[0x0112] = 6
    return saved(image, "jpeg", exif=image.getexif())


def transparent() -> Image.Image:
    image = Image.fromarray(color()).quantize(8)
    image.info["transparency"] = bytes(range(0, 160, 20))
    return image


# name, and the bytes of the file
PICTURES: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: saved(Image.fromarray(color()), "png"),
    "rgb.jpg": lambda: saved(Image.fromarray(color(16, 16)), "jpeg", quality=80),
    "gray.jpg": lambda: saved(Image.fromarray(color()).convert("L"), "jpeg"),
    "gray-and-alpha.png": lambda: saved(Image.fromarray(color()).convert("LA"), "png"),
    "alpha.png": lambda: saved(Image.fromarray(RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)), "png"),
    "palette.png": lambda: saved(Image.fromarray(color()).quantize(8), "png"),
    "transparent-palette.png": lambda: saved(transparent(), "png"),
    "cmyk.jpg": lambda: saved(Image.fromarray(color(9, 6)).convert("CMYK"), "jpeg"),
    "turned.jpg": turned,
    "sixteen.png": lambda: saved(Image.fromarray(RNG.integers(0, 2**16, (5, 8)).astype(np.uint16)), "png"),
    "black-and-white.bmp": lambda: saved(Image.fromarray(color()).convert("1"), "bmp"),
    "one-pixel.png": lambda: saved(Image.fromarray(color(1, 1)), "png"),
}


def put(cache: Path, source: Source, split: str = "train", largest: int = 250) -> None:
    """What a pass would leave, picture after picture."""
    cache.mkdir(exist_ok=True)
    whole = cut(len(source), largest)
    blocks = Blocks(cache, split, source.digest)
    for rows in whole:
        pictures = [source.item(row).x for row in rows]
        shapes = np.array([x.shape for x in pictures], np.int32)
        blocks.put(rows, shapes, np.concatenate([x.reshape(-1) for x in pictures]))
    blocks.note(whole, source.digest_scope)


def read(cache: Path, source: Source, split: str = "train") -> Decoded:
    return Decoded(source, open_pictures(cache, split, len(source), source.digest))


def photos(folder: Path, members: int = 2, rows: dict[str, int] = ROWS) -> Path:
    """`make_folder` with folders of PNG files, of two sizes, in the place of arrays."""
    make_folder(folder, members, rows)
    toml = (folder / "edistill.toml").read_text()
    for split, count in rows.items():
        x, y = examples(count, sum(map(ord, split)))
        for row in range(count):
            place = folder / "data" / split / "abc"[y[row] % CLASSES] / f"{row:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(x[row]).convert("RGB")
            (image if row % 3 else image.resize((9, 8))).save(place)
        toml = toml.replace(f'"data/{split}.npz"', f'"data/{split}"')
        (folder / "data" / f"{split}.npz").unlink()
    (folder / "edistill.toml").write_text(toml)
    return folder
