"""How one member's outputs on one row become a fixed number of bytes: logits, or a mean and a log-variance; and how an
input does, of views that move inputs along the members' gradients.

Logits are kept, not probabilities, so any temperature works later. A row's maximum is subtracted before
rounding to float16 and kept beside it in float32: near the maximum, where the probability is, float16 is then
finest, and model uncertainty is off by less than 0.1 % (bfloat16: 20 times worse). In float32 the logits stay
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOWEST = -65504.0  # the most negative float16


def layout(classes: int, dtype: str) -> np.dtype[np.void]:
    """The record of one row: its maximum (float32), and K logits, in float16 relative to it. Without classes (0), a
    mean and a log-variance in float32: float16 would round away the members' differences far from 0."""
    if classes == 0:
        return np.dtype([("moments", "<f4", (2,))])
    return np.dtype([("max", "<f4"), ("logits", {"float16": "<f2", "float32": "<f4"}[dtype], (classes,))])


def encode(outputs: NDArray[np.float32], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Finite outputs (B, W) to B records of this layout."""
    records = np.empty(len(outputs), record)
    names = record.names or ()
    if "moments" in names:
        records["moments"] = outputs
        return records
    logits, top = outputs, outputs.max(axis=1)
    records["max"] = top
    if record["logits"].base == np.float16:
        with np.errstate(over="ignore"):  # a difference beyond float32 is LOWEST as well
            logits = np.maximum(logits - top[:, None], LOWEST)
    records["logits"] = logits
    return records


def decode(records: NDArray[np.void]) -> NDArray[np.float32]:
    """B records to outputs (B, W) in float32: logits, or means and log-variances."""
    if "moments" in (records.dtype.names or ()):
        moments: NDArray[np.float32] = records["moments"].astype(np.float32)
        return moments
    stored = records["logits"]
    logits: NDArray[np.float32] = stored.astype(np.float32)
    if stored.dtype == np.float16:
        logits += records["max"][:, None]
    return logits


def input_layout(shape: Sequence[int], dtype: str) -> np.dtype[np.void]:
    """The record of one input: as "uint8" 255 times one in [0, 1], rounded; as "float32" what it is."""
    return np.dtype([("x", {"uint8": "|u1", "float32": "<f4"}[dtype], tuple(shape))])


def encode_inputs(x: NDArray[np.float32], record: np.dtype[np.void]) -> NDArray[np.void]:
    """Inputs (B, ...) to B records.

    Rounded to 8 bits, an input moved by about a level a value has still moved as far along the gradient, on average:
    what rounding adds is noise across it. Members and student are shown the rounded one.
    """
    records = np.empty(len(x), record)
    records["x"] = np.rint(255 * x) if record["x"].base == np.uint8 else x
    return records


def decode_inputs(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Records (...) to inputs in float32: what every member was shown, and what training shows the student."""
    x: NDArray[np.float32] = records["x"].astype(np.float32)
    if records["x"].dtype == np.uint8:
        x /= np.float32(255)
    return x
