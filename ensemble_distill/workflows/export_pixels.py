"""`edistill export --uint8-input`: an exported graph with built-in preprocessing, verified against the plain graph."""

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
        x: real rows (B, *shape) as the plain file takes them, made from 8-bit pixels.

    Raises:
        EdistillError: the student does not take images, the rows are not from 8-bit pixels, or the files differ.
    """
    plain = Served(graph)
    to = refuse_no_pixels(plain.card, str(graph))
    model = with_pixels(onnx.ModelProto.FromString(onnx_content(graph)), to)
    path = graph.with_name(RAW[graph.name])
    wanted = Wanted(x, plain.run(x.numpy()), plain.card.task.tolerance, OTHERWISE)
    write_pixels(path, model, replace(plain.card, input="uint8"), wanted)
    return path


def write_pixels(path: Path, model: onnx.ModelProto, card: Card, wanted: Wanted) -> None:
    """Write a graph that takes raw pixels, with its card, once its outputs for real rows are the wanted ones."""
    write_verified(path, carded(model, card), card, wanted)


def as_without(plain: Served, x: torch.Tensor) -> Wanted:
    """The outputs that a graph with built-in preprocessing should give for real rows.

    These are the outputs of the plain graph for the rows' pixels, normalized as the new graph does it: in layers of
    lower precision, a difference in the last bit may change a number.

    Raises:
        EdistillError: the rows are not from 8-bit pixels.
    """
    given = normalized(plain.pixels(x.numpy()), refuse_no_pixels(plain.card, str(plain.path)))
    return Wanted(x, plain.run(given), plain.card.task.tolerance, OTHERWISE)
