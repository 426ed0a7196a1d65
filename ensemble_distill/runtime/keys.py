"""Random numbers derived from a key, the same on every machine and in every process.

numpy's and torch's global generators differ between workers, and numpy guarantees the stability of its bit generators
but not of the distributions drawn from them. So short uniforms come from BLAKE2 of the key, and long streams from
Philox's raw words, with normals by the Box-Muller transform.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray


def _digest(key: tuple[int | str, ...], size: int) -> bytes:
    text = "/".join(str(part) for part in key).encode()
    return hashlib.blake2b(text, digest_size=size).digest()


def uniforms(count: int, *key: int | str) -> tuple[float, ...]:
    """`count` (at most 8) floats in [0, 1) with 53 random bits each, a pure function of the key."""
    words = struct.unpack(f"<{count}Q", _digest(key, 8 * count))
    return tuple((word >> 11) * 2.0**-53 for word in words)


def _words(count: int, key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    seed = int.from_bytes(_digest(key, 16), "little")
    return np.random.Philox(key=seed).random_raw(count)


def uniform_row(count: int, *key: int | str) -> NDArray[np.float64]:
    """Any number of floats in [0, 1), (count,), a pure function of the key; a different stream from `uniforms`."""
    row: NDArray[np.float64] = (_words(count, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return row


def normals(shape: tuple[int, ...], *key: int | str) -> NDArray[np.float32]:
    """Standard normals of the given shape, float32, a pure function of the key."""
    count = int(np.prod(shape))
    half = (count + 1) // 2
    unit = (_words(2 * half, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-unit[:half]))
    angle = 2.0 * np.pi * unit[half:]
    flat = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return flat.astype(np.float32).reshape(shape)


def permutation(count: int, *key: int | str) -> NDArray[np.int64]:
    """A permutation of range(count), a pure function of the key."""
    return np.argsort(_words(count, key), kind="stable").astype(np.int64)
