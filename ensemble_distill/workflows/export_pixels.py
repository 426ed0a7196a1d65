"""`edistill export --uint8-input`: an exported graph behind its preprocessing, verified against the graph itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import torch

from ensemble_distill.exporting.onnx import Wanted, carded, write_verified
from ensemble_distill.exporting.pixels import normalized, refuse_no_pixels, with_pixels
from ensemble_distill.runs.exports import onnx_content
from ensemble_distill.runs.folder import RAW
from ensemble_distill.serving.card import Card
from ensemble_distill.serving.served import Served

OTHERWISE = "Leave --uint8-input out, and report the body."


def export_pixels(graph: Path, x: torch.Tensor) -> Path:
    """Write `model-uint8.onnx` beside the plain file, which has just been written.

    Args:
        x: real rows (B, *shape) as the plain file takes them, of pixels of 8 bits.

    Raises:
        EdistillError: the student takes no pictures, the rows are of other pixels, or the files differ.
    """
    plain = Served(graph)
    to = refuse_no_pixels(plain.card, str(graph))
    model = with_pixels(onnx.ModelProto.FromString(onnx_content(graph)), to)
    path = graph.with_name(RAW[graph.name])
    wanted = Wanted(x, plain.run(x.numpy()), plain.card.task.tolerance, OTHERWISE)
    write_pixels(path, model, replace(plain.card, input="uint8"), wanted)
    return path


def write_pixels(path: Path, model: onnx.ModelProto, card: Card, wanted: Wanted) -> None:
    """Write a graph of raw pixels with what it says of itself, once it says of real rows what is wanted."""
    write_verified(path, carded(model, card), card, wanted)


def as_without(plain: Served, x: torch.Tensor) -> Wanted:
    """What a graph behind its preprocessing is to say of real rows: what the same graph without says of their pixels,
    normalized as it does that itself. Where layers are in less precision, a number that is off by a last bit may become
    another one there.

    Raises:
        EdistillError: the rows are of no pixels of 8 bits.
    """
    given = normalized(plain.pixels(x.numpy()), refuse_no_pixels(plain.card, str(plain.path)))
    return Wanted(x, plain.run(given), plain.card.task.tolerance, OTHERWISE)
