"""ONNX graphs in the versions that a runtime supports: the opset of the operators, and the IR version of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.serving.served import SILENT

ONNX_DOMAIN = ""
OPSETS = (7, onnx.defs.onnx_opset_version())  # that onnx's converter supports


@dataclass(frozen=True)
class Versions:
    """The versions to write a file in; None for those that torch writes.

    Attributes:
        opset: of the operators.
        ir: of the file format.
    """

    opset: int | None = None
    ir: int | None = None

    def __post_init__(self) -> None:
        """Raise EdistillError for versions that cannot be written."""
        for flag, value, (least, most) in (
            ("--opset", self.opset, OPSETS),
            ("--ir-version", self.ir, (oldest_ir(OPSETS[0]), int(onnx.IR_VERSION))),
        ):
            if value is not None and not least <= value <= most:
                raise EdistillError(
                    f"{flag} is {value}, and onnx {onnx.__version__} writes {least} to {most}. "
                    "Give one of these, or leave it out."
                )
        if self.opset is not None and self.ir is not None and self.ir < oldest_ir(self.opset):
            raise _too_old(self.ir, self.opset)


def brought_to(model: onnx.ModelProto, wanted: Versions) -> onnx.ModelProto:
    """The graph in these versions, checked by onnx and loaded by onnxruntime.

    Raises:
        EdistillError: an operator has no equivalent in the older opset, the file format is older than the operators, or
            onnxruntime cannot load the graph.
    """
    if wanted == AS_TRACED:
        return model
    if wanted.opset is not None and wanted.opset != opset_of(model):
        model = _converted(model, wanted.opset)
    least = oldest_ir(opset_of(model))
    model.ir_version = max(model.ir_version, least) if wanted.ir is None else wanted.ir
    if model.ir_version < least:
        raise _too_old(model.ir_version, opset_of(model))
    _refuse_unread(model)
    return model


def opset_of(model: Any) -> int:
    """The opset of ONNX's own operators in a graph."""
    return max(int(entry.version) for entry in model.opset_import if entry.domain == ONNX_DOMAIN)


def oldest_ir(opset: int) -> int:
    """The oldest IR version that supports an opset."""
    rows = onnx.helper.VERSION_TABLE
    return min(int(ir) for _, ir, of, *_ in rows if int(of) >= opset)


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The graph in another opset; raises EdistillError if its operators have no equivalent there."""
    try:
        return _in_opset(model, opset)
    except Exception as error:  # onnx raises several kinds of errors for one reason
        newer = next((one for one in range(opset + 1, opset_of(model) + 1) if _is_possible(model, one)), None)
        mend = "Leave --opset out" if newer is None else f"Pass --opset {newer} or a later one"
        why = quoted(error).rpartition("failed: ")[2]  # without the place in onnx's source where it failed
        raise EdistillError(f"The graph cannot be written in opset {opset}: {why}. {mend}.") from None


def _in_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    if model.functions:
        raise ValueError("it has functions, which onnx does not convert")
    converted = onnx.version_converter.convert_version(model, opset)
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _is_possible(model: onnx.ModelProto, opset: int) -> bool:
    if opset == opset_of(model):
        return True
    try:
        _in_opset(model, opset)
    except Exception:  # several kinds of errors, as above
        return False
    return True


def _refuse_unread(model: onnx.ModelProto) -> None:
    """Raise EdistillError if onnx finds the graph invalid, or onnxruntime cannot load it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    try:
        onnx.checker.check_model(model)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # their errors share no base class
        raise EdistillError(
            f"onnxruntime {onnxruntime.__version__} does not run the graph in opset {opset_of(model)} and IR version "
            f"{model.ir_version}: {quoted(error)}. Pass an older --opset and --ir-version, or leave them out."
        ) from None


def _too_old(ir: int, opset: int) -> EdistillError:
    newest = max(int(of) for _, known, of, *_ in onnx.helper.VERSION_TABLE if int(known) <= ir)
    return EdistillError(
        f"A file of IR version {ir} holds operators of opset {newest} at most, and these are of {opset}. Pass --opset "
        f"{newest} too, or --ir-version {oldest_ir(opset)} or later."
    )


AS_TRACED = Versions()
