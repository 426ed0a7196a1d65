"""`edistill export --uint8-input`: the exported graph behind its preprocessing, verified against the plain file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import torch

from ensemble_distill.exporting.onnx import Wanted, carded, write_verified
from ensemble_distill.exporting.pixels import refuse_no_pixels, with_pixels
from ensemble_distill.runs.exports import onnx_content
from ensemble_distill.runs.folder import UINT8
from ensemble_distill.serving.served import Served


def export_pixels(graph: Path, x: torch.Tensor) -> Path:
    """Write `model-uint8.onnx` beside the plain file, which has just been written.

    Args:
        x: real rows (B, *shape) as the plain file takes them, of pixels of 8 bits.

    Raises:
        EdistillError: the student takes no pictures, the rows are of other pixels, or the files differ.
    """
    plain = Served(graph)
    to = refuse_no_pixels(plain.card, str(graph))
    card, path = replace(plain.card, input="uint8"), graph.with_name(UINT8)
    model = carded(with_pixels(onnx.ModelProto.FromString(onnx_content(graph)), to), card)
    wanted = Wanted(x, plain.run(x.numpy()), card.task.tolerance, "Leave --uint8-input out, and report the body.")
    write_verified(path, model, card, wanted)
    return path
