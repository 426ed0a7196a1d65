"""The folders of the study: members, data, and the rows for choices, calibration and reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from common import copy_teachers, gray_cifar10, unpack_cifar10, write_digits
from ensemble import train_members
from photos import patches, scaled_patches
from PIL import Image, ImageDraw, ImageFont

OOD_ROWS = 2000
TRANSFER_ROWS = 5000
CIFAR10_TRAIN_ROWS = 20_000  # of the 45,000 training rows of the members


def prepare_mnist(shared: Path, work: Path) -> None:
    """The 50 MLPs of examples/mnist, and two random halves of the 10,000 rows that no member was trained on."""
    shutil.copy(Path(__file__).parents[1] / "mnist" / "model.py", work / "model.py")
    if not (work / "mnist.npz").exists():
        shutil.copy(shared / "data" / "mnist.npz", work / "mnist.npz")
    train_members(work / "mnist.npz", work)
    order = np.random.Generator(np.random.PCG64(0)).permutation(10_000)
    np.save(work / "validation_rows.npy", np.sort(order[:5000]))
    np.save(work / "calibration_rows.npy", np.sort(order[5000:]))
    if not (work / "photos.npz").exists():
        np.savez_compressed(work / "cifar10.npz", x=gray_cifar10(shared, OOD_ROWS))
        np.savez_compressed(work / "photos.npz", x=patches(28, OOD_ROWS))


def prepare_cifar10(shared: Path, work: Path) -> None:
    """The ten ResNet-8, two halves of the 5,000 rows that no member was trained on, and transfer rows from
    photographs."""
    unpack_cifar10(shared, work)
    copy_teachers(shared / "teachers" / "cifar10-resnet8", work)
    write_digits(work)
    unseen = np.sort(np.load(work / "teachers" / "unseen_train_rows.npy"))
    seen = np.setdiff1d(np.arange(50_000), unseen)
    order = np.random.Generator(np.random.PCG64(0)).permutation(seen)
    np.save(work / "train_rows.npy", np.sort(order[:CIFAR10_TRAIN_ROWS]))
    np.save(work / "validation_rows.npy", unseen[0::2])
    np.save(work / "calibration_rows.npy", unseen[1::2])
    if not (work / "photos.npz").exists():
        np.savez_compressed(work / "photos.npz", x=scaled_patches(32, TRANSFER_ROWS))
    if not (work / "more-mnist.npz").exists():
        with np.load(shared / "data" / "mnist.npz") as arrays:
            _write_gray(work / "mnist.npz", arrays["test_x"][::5])
            _write_gray(work / "more-mnist.npz", arrays["val_x"][::5])
    if not (work / "print.npz").exists():
        text = (shared / "data" / "text" / "wikitext2-test.txt").read_text(encoding="utf-8")
        _write_gray(work / "print.npz", _printed(text))


def _write_gray(path: Path, x: np.ndarray) -> None:
    """Write gray pictures (N, H, W) as 32 × 32 pictures of three channels."""
    enlarged = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR)) for one in x]
    np.savez_compressed(path, x=np.repeat(np.stack(enlarged)[..., None], 3, axis=-1))


def _printed(text: str) -> np.ndarray:
    """Scraps of printed text, (OOD_ROWS, 32, 32): black on white and white on black, in several sizes."""
    random = np.random.Generator(np.random.PCG64(0))
    words = text.split()
    scraps = []
    for index in range(OOD_ROWS):
        start, size = int(random.random() * (len(words) - 12)), 8 + int(random.random() * 16)
        scrap = Image.new("L", (32, 32), 255)
        lines = "\n".join(" ".join(words[start + i : start + i + 3]) for i in range(0, 12, 3))
        ImageDraw.Draw(scrap).multiline_text((1, 1), lines, fill=0, font=ImageFont.load_default(size))
        scraps.append(np.asarray(scrap) if index % 2 else 255 - np.asarray(scrap))
    return np.stack(scraps)


PREPARE = {"mnist": prepare_mnist, "cifar10": prepare_cifar10}
