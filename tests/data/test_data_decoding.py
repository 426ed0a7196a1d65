"""Pictures of every mode read as torchvision reads them, or as their white says where torchvision would clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import refused

from ensemble_distill.data import open_source
from ensemble_distill.data.decoding import in_eight_bits
from ensemble_distill.data.source import Array

RNG = np.random.default_rng(3)
COLOR = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
SIXTEEN = np.array([[0, 128, 257, 32768], [1000, 65534, 65535, 129]], np.uint16)


def palette() -> Image.Image:
    image = Image.fromarray(COLOR).quantize(8)
    image.info["transparency"] = bytes(range(0, 160, 20))
    return image


SAVED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "alpha": ("a.png", lambda path: Image.fromarray(ALPHA).save(path)),
    "gray with alpha": ("a.png", lambda path: Image.fromarray(ALPHA).convert("LA").save(path)),
    "palette": ("a.png", lambda path: Image.fromarray(COLOR).quantize(8).save(path)),
    "transparent palette": ("a.png", lambda path: palette().save(path)),
    "cmyk": ("a.jpg", lambda path: Image.fromarray(COLOR).convert("CMYK").save(path)),
    "cmyk tiff": ("a.tif", lambda path: Image.fromarray(COLOR).convert("CMYK").save(path)),
    "black and white": ("a.png", lambda path: Image.fromarray(COLOR).convert("1").save(path)),
    "turned": ("a.jpg", lambda path: turned().save(path, exif=turned().getexif())),
}


def turned() -> Image.Image:
    image = Image.fromarray(COLOR)
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # torchvision's reading warns
@pytest.mark.parametrize("case", SAVED)
def test_an_image_reads_as_torchvision_reads_it(case: str, tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    name, save = SAVED[case]
    save(tmp_path / name)
    assert_array_equal(open_source(tmp_path).item(0).x, np.asarray(pil_loader(str(tmp_path / name))))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_gray_of_16_bits_is_scaled_and_not_clipped(name: str, tmp_path: Path) -> None:
    if name == "a.pgm":  # which Pillow before 11 reads and does not write
        (tmp_path / name).write_bytes(b"P5\n4 2\n65535\n" + SIXTEEN.astype(">u2").tobytes())
    else:
        Image.fromarray(SIXTEEN).save(tmp_path / name)
    found = open_source(tmp_path).item(0).x
    assert_array_equal(found, np.repeat(np.rint(SIXTEEN / 65535 * 255)[..., None], 3, axis=2))


def test_the_bytes_of_16_bits_may_be_in_any_order() -> None:
    big = Image.frombytes("I;16B", (4, 2), SIXTEEN.astype(">u2").tobytes())
    assert_array_equal(np.asarray(in_eight_bits(big)), np.rint(SIXTEEN / 257))


def test_what_says_of_no_value_that_it_is_white_is_refused(tmp_path: Path) -> None:
    for index, array in enumerate((SIXTEEN.astype(np.int32), SIXTEEN.astype(np.float32))):
        Image.fromarray(array).save(tmp_path / f"{index}.tif")
    source = open_source(tmp_path)
    for row, mode in enumerate(("I", "F")):
        with refused(f"{row}.tif (row {row}) does not decode", f"of mode {mode}", "store 8 or 16 bits"):
            source.item(row)
    for row in range(2):  # the remedy
        Image.fromarray(SIXTEEN).save(tmp_path / f"{row}.tif")
    assert open_source(tmp_path).item(1).x.max() == 255


def png(width: int, height: int) -> bytes:
    """The head of a file that claims this size."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10**4 + 1, 10**6])  # Pillow warns of the first, and refuses the second
def test_an_image_that_claims_a_size_beyond_all_bounds_is_one_message(side: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side))
    with refused("a.png (row 0) does not decode", "Replace the file, or remove it"):
        open_source(tmp_path).item(0)


def test_an_image_that_is_gone_since_it_was_listed_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(COLOR).save(tmp_path / name)
    source = open_source(tmp_path)
    (tmp_path / "b.png").unlink()
    with refused("b.png (row 1) does not decode"):
        source.item(1)
    with refused("b.png cannot be read"):
        source.digest  # noqa: B018
    (tmp_path / "b.png").mkdir()
    with refused("b.png"):
        source.item(1)


def test_a_users_image_without_a_white_is_refused(tmp_path: Path) -> None:
    text = (
        "import numpy as np\nfrom PIL import Image\n"
        "class Rows:\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, row): return Image.fromarray(np.full((6, 5), 70000, np.int32))\n"
        "def make(): return Rows()\n"
    )
    (tmp_path / "mine.py").write_text(text)
    with refused("x is an image", "of mode I", "Return its array"):
        open_source(f"{tmp_path}/mine.py:make")
    (tmp_path / "yours.py").write_text(text.replace("Image.fromarray(np.full((6, 5), 70000, np.int32))", ARRAY))
    assert open_source(f"{tmp_path}/yours.py:make").kind == "pixels"


ARRAY = "np.full((6, 5), 200, np.uint8)"


def test_pixels_of_8_bits_are_left_as_they_are() -> None:
    image = Image.fromarray(COLOR)
    assert in_eight_bits(image) is image
    array: Array = np.asarray(image)
    assert_array_equal(array, COLOR)
