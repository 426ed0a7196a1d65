"""An exported ONNX student, run by onnxruntime without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import Named, Preprocessing, Several
from ensemble_distill.runs.exports import onnx_content, refuse_damaged_onnx
from ensemble_distill.runs.folder import EXPORTED, export_again
from ensemble_distill.runtime.cores import threads_here
from ensemble_distill.runtime.seals import ONNX_KEY, UNSEALED
from ensemble_distill.serving.batching import rows_at_once
from ensemble_distill.serving.card import Card, damaged
from ensemble_distill.serving.ends import NEW_STATE, STATE
from ensemble_distill.serving.exported_file import ExportedFile, Outputs

SHORTEST = 2  # fewest tokens for a graph of any length: exporters treat 1 as a constant
MASK = "attention_mask"
FLOATS, IDS, BYTES = "tensor(float)", "tensor(int64)", "tensor(uint8)"
WHOLE = 0.02  # out of 255: how far from a whole number float32 arithmetic can leave a pixel
SIZES = {IDS: 8, BYTES: 1}  # bytes per number; all other types have at most 4
SILENT = 4  # else onnxruntime also writes to stderr what it raises


def _opened(content: bytes, path: Path) -> onnx.ModelProto:
    """The graph of a file that contains all of its weights.

    Raises:
        EdistillError: it is not an ONNX file, or names other files to read, which no exported file does and which could
            be any file on the disk.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's error has different names in different versions
        raise UnrunnableError(path, error) from None
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "another file")
            raise EdistillError(
                f"{path} has weights that are to be read from {where}, and a file of edistill has all of its own. "
                "Nothing was read. Give a file that edistill export --onnx wrote."
            )
    return model


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a protobuf message, however deeply nested: initializers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


class UnrunnableError(EdistillError):
    """A file that onnxruntime cannot run, with the reason."""

    def __init__(self, path: Path, error: Exception) -> None:
        self.reason = first_line(error)
        super().__init__(
            f"{path} is not an ONNX file that onnxruntime can run: {self.reason}. Give a file that "
            "edistill export --onnx wrote."
        )


@dataclass(frozen=True)
class _End:
    """An input of a graph; a size of its shape is a number, or a name if it is free."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    def takes(self, shape: tuple[int, ...], of: str = FLOATS) -> bool:
        """Whether it takes any number of rows of this shape and type."""
        batch, *sizes = self.shape or (1,)
        fits = len(sizes) == len(shape) and all(
            a == b or not isinstance(a, int) for a, b in zip(sizes, shape, strict=True)
        )
        return self.type == of and not isinstance(batch, int) and fits


class Served(ExportedFile):
    """An exported graph, ready to run."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, changed: bool = False, threads: int | None = None) -> None:
        """Open an exported graph.

        Args:
            changed: whether the user changed the file after its export, for instance by quantizing it; its sha256 is
                then ignored.
            threads: threads per operation; None for all cores of this process.

        Raises:
            EdistillError: there is no such file, or edistill did not write it.
        """
        content = onnx_content(path)
        if not changed:
            refuse_damaged_onnx(path, content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = threads or threads_here()
        self.path = path
        model = _opened(content, path)
        self.ir_version = int(model.ir_version)
        self.opsets = {entry.domain: int(entry.version) for entry in model.opset_import}
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        del model  # frees a second copy of the weights
        self.card = Card.from_metadata(metadata, path)
        if not changed and ONNX_KEY not in metadata and self.card.version not in UNSEALED:
            raise damaged(path, f"the sha256 is missing that files of edistill {self.card.version} hold")
        try:
            # the bytes checked above, without a path, so that onnxruntime cannot read any other file they name
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise UnrunnableError(path, error) from None
        self._refuse_other_ends()
        self.inputs: tuple[str, ...] = tuple(i.name for i in self.session.get_inputs())
        self.input: str = self.inputs[0]
        self._outputs = tuple(output.name for output in self.session.get_outputs())

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._outputs

    @property
    def heads(self) -> int:
        return next((int(o.shape[1]) for o in self.session.get_outputs() if o.name.startswith("head_")), 1)

    def _refuse_other_ends(self) -> None:
        """Raise EdistillError if inputs or outputs contradict the card."""
        inputs = [_End(i.name, i.type, tuple(i.shape)) for i in self.session.get_inputs()]
        outputs = {o.name: o.type for o in self.session.get_outputs()}
        if self.card.encoding is not None:
            self._refuse_other_fields(inputs, self.card.encoding)
        else:
            self._refuse_other_inputs(inputs, outputs)
        for name in self.card.task.served(0):
            if name not in outputs:
                raise self.other(f"it has no output {name}, and {', '.join(outputs) or 'none at all'}")
        for name in self.ends(0).keys() & outputs.keys():
            if outputs[name] != FLOATS:
                raise self.other(f"its output {name} is {outputs[name]}, and not {FLOATS}")

    def _refuse_other_inputs(self, inputs: list[_End], outputs: Mapping[str, str]) -> None:
        """Refuse inputs other than the rows and, for a recurrent student, its state."""
        states = [end for end in inputs[1:] if self._is_state(end, outputs)]
        of, shape = IDS if self.card.kind == "tokens" else FLOATS, self.card.shape
        if self.card.input == "uint8":
            of, shape = BYTES, (*shape[1:], shape[0])
        if len(inputs) != 1 + len(states) or not inputs[0].takes(shape, of):
            told = ", ".join(f"{end.name}: {end.type} {list(end.shape)}" for end in inputs) or "none"
            raise self.other(f"its inputs are {told}, and not one {of}, any number of {shape}")

    def _refuse_other_fields(self, inputs: list[_End], encoding: Named) -> None:
        """Refuse inputs other than those of a student of texts or of several arrays."""
        if isinstance(encoding, Several):
            wanted = {slot.name: (slot.shape, IDS if slot.ids else FLOATS) for slot in encoding.slots}
        else:
            wanted = dict.fromkeys(encoding.fields, ((encoding.length,), IDS))
        fits = [end.name for end in inputs if end.name in wanted and end.takes(*wanted[end.name])]
        if sorted(fits) != sorted(wanted) or len(inputs) > len(fits):
            told = ", ".join(f"{end.name}: {end.type} {list(end.shape)}" for end in inputs) or "none"
            asked = ", ".join(f"{name}: {of} {list(shape)}" for name, (shape, of) in wanted.items())
            raise self.other(f"its inputs are {told}, and not any number of {asked}")

    def given(self, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Rows (B, *shape) by the names of the graph's inputs.

        If the graph takes any length, texts are cut to the longest of them, without the padding beyond.
        """
        encoding = self.card.encoding
        if self.card.input == "uint8":
            return {self.input: self.pixels(x)}
        if encoding is None:
            return {self.input: x, **self.begun(len(x))}
        if isinstance(encoding, Several):
            return {
                slot.name: x[:, slot.start : slot.stop]
                .reshape(-1, *slot.shape)
                .astype(np.int64 if slot.ids else x.dtype)
                for slot in encoding.slots
            }
        if MASK in encoding.fields and not isinstance(self.session.get_inputs()[0].shape[1], int):
            used = np.flatnonzero(x[:, encoding.fields.index(MASK)].any(0))
            x = x[..., : max(SHORTEST, int(used[-1]) + 1 if len(used) else 1)]
        return {field: np.ascontiguousarray(x[:, at]) for at, field in enumerate(encoding.fields)}

    def pixels(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Normalized pixels (B, C, H, W) as the bytes (B, H, W, C) they were made from; raises EdistillError if
        there are none."""
        to = self.card.preprocessing
        assert isinstance(to, Preprocessing)
        mean, std = (np.array(values, np.float64)[:, None, None] for values in (to.mean, to.std))
        exact = 255 * (x * std + mean)
        pixels = np.rint(exact)
        if not (np.abs(exact - pixels) <= WHOLE).all() or pixels.min() < 0 or pixels.max() > 255:
            raise EdistillError(
                f"{self.path} takes pixels of 8 bits, and the rows hold others, from {exact.min():.4g} to "
                f"{exact.max():.4g} of 255. Use {EXPORTED}, which takes them normalized, or give pictures of 8 bits."
            )
        return np.ascontiguousarray(pixels.astype(np.uint8).transpose(0, 2, 3, 1))

    def _is_state(self, end: _End, outputs: Mapping[str, str]) -> bool:
        """Whether an input is part of a recurrent student's state, which is also an output."""
        after = end.name.replace(STATE, NEW_STATE, 1)
        free = sum(not isinstance(size, int) for size in end.shape)
        return (
            self.card.kind == "tokens"
            and end.name.startswith(STATE)
            and end.type == outputs.get(after) == FLOATS
            and free == 1
        )

    def begun(self, rows: int) -> dict[str, NDArray[np.float32]]:
        """The initial state of `rows` streams, by the names of the graph's inputs; empty for a graph without a
        state."""
        return {
            i.name: np.zeros([size if isinstance(size, int) else rows for size in i.shape], np.float32)
            for i in self.session.get_inputs()[1:]
        }

    def example(self) -> dict[str, NDArray[Any]]:
        """An example row by the names of the graph's inputs: zeros, but ones for texts, which the mask then keeps, and
        for several arrays."""
        encoding = self.card.encoding
        if isinstance(encoding, Several):
            return self.given(np.ones((1, *encoding.shape), np.float32))
        if encoding is not None:
            return {field: np.ones((1, encoding.length), np.int64) for field in encoding.fields}
        if self.card.input == "uint8":
            return {self.input: np.zeros((1, *self.card.shape[1:], self.card.shape[0]), np.uint8)}
        return self.given(np.zeros((1, *self.card.shape), np.int64 if self.card.ids else np.float32))

    def run(self, x: NDArray[np.float32]) -> Outputs:
        options = onnxruntime.RunOptions()
        options.log_severity_level = SILENT
        try:
            found = dict(zip(self.outputs, self.session.run(None, self.given(x), options), strict=True))
        except Exception as error:  # onnxruntime's errors share no base class
            mend = f"Export the run again: {export_again(self.path)}."
            if self.card.ids:
                mend = f"Their largest id is {x.max()}: give ids of the vocabulary that the student was trained with."
            raise EdistillError(
                f"{self.path} fails on {len(x)} rows of shape {x.shape[1:]}: {first_line(error)}. {mend}"
            ) from None
        return self.checked(self._told(found), len(x))

    def _told(self, found: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The outputs of a graph with a state, which covers every position: only the task's positions, without the
        state."""
        if len(self.inputs) == 1 or self.card.encoding is not None:
            return found
        cut = {}
        for name, values in found.items():
            if not name.startswith(NEW_STATE):
                axis = values.ndim - (2 if "logits" in name else 1)
                start = values.shape[axis] - self.card.task.shape[0]
                cut[name] = np.ascontiguousarray(values.take(range(max(start, 0), values.shape[axis]), axis))
        return cut

    @property
    def at_once(self) -> int:
        ends = [
            (end.shape, SIZES.get(end.type, 4)) for end in (*self.session.get_inputs(), *self.session.get_outputs())
        ]
        return rows_at_once(ends, longest=max(self.card.shape))
