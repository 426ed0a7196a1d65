"""Patches of the two photographs that come with scikit-learn: python examples/diversity/photos.py 8 500 photos.npz

Writes that many gray patches of 8 × 8 pixels, for use as transfer rows.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def patches(size: int, count: int) -> np.ndarray:
    """Gray patches at random positions of the photographs at half resolution, (count, size, size)."""
    random = np.random.Generator(np.random.PCG64(0))
    photos = [np.asarray(Image.fromarray(photo).convert("L").reduce(2)) for photo in load_sample_images().images]
    corners = random.random((count, 2))
    found = []
    for index, (down, right) in enumerate(corners):
        photo = photos[index % len(photos)]
        top, left = int(down * (photo.shape[0] - size)), int(right * (photo.shape[1] - size))
        found.append(photo[top : top + size, left : left + size])
    return np.stack(found)


def scaled_patches(size: int, count: int) -> np.ndarray:
    """Color patches of `size` to 362 pixels a side, reduced to `size`: (count, size, size, 3)."""
    random = np.random.Generator(np.random.PCG64(0))
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    octaves = 3.5 + math.log2(32 / size)
    found = []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = round(size * 2 ** (random.random() * octaves))
        top, left = int(random.random() * (photo.height - side)), int(random.random() * (photo.width - side))
        patch = photo.crop((left, top, left + side, top + side))
        found.append(np.asarray(patch.resize((size, size), Image.Resampling.BOX)))
    return np.stack(found)


if __name__ == "__main__":
    color = scaled_patches(int(sys.argv[1]), int(sys.argv[2]))
    np.savez_compressed(Path(sys.argv[3]), x=np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in color]))
