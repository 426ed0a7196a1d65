"""Running an exported ONNX student on inputs, without torch.

Everything needed is in the file: how pixels become its input, the class names, and what its outputs are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ensemble_distill.data.columns import Columns, Declared
from ensemble_distill.data.rendering import as_gray
from ensemble_distill.data.rows import plain_input
from ensemble_distill.data.several import held, of_pairs
from ensemble_distill.data.source import Item, Source
from ensemble_distill.data.vocabulary import Reading
from ensemble_distill.errors import EdistillError, first_few, first_line
from ensemble_distill.facts import Named, Preprocessing, Several
from ensemble_distill.runs.exports import onnx_content, refuse_damaged_onnx
from ensemble_distill.runs.folder import EXPORTED, ONNX, export_again
from ensemble_distill.runtime.seals import ONNX_KEY, UNSEALED
from ensemble_distill.serving.batching import rows_at_once
from ensemble_distill.serving.card import Card, damaged
from ensemble_distill.serving.ends import NEW_STATE, STATE
from ensemble_distill.tasks.figures import UNCERTAINTIES

SHORTEST = 2  # tokens that a graph of any length is given at least: exporters take 1 for a constant
MASK = "attention_mask"
FLOATS, IDS, BYTES = "tensor(float)", "tensor(int64)", "tensor(uint8)"
WHOLE = 0.02  # of 255: so far from a whole number float32 may bring a pixel and back
SIZES = {IDS: 8, BYTES: 1}  # in bytes, of a number; all others have 4 at most
SILENT = 4  # onnxruntime writes to stderr by itself what it raises too

Outputs = Mapping[str, NDArray[np.float32]]


def _opened(content: bytes, path: Path) -> onnx.ModelProto:
    """A graph whose weights are all in the file.

    Raises:
        EdistillError: it is no ONNX file, or names others to read from: no file of ours does, and those could be any.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's error has no name that all its versions have
        raise _not_onnx(path, error) from None
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "another file")
            raise EdistillError(
                f"{path} has weights that are to be read from {where}, and a file of edistill has all of its own. "
                "Nothing was read. Give a file that edistill export --onnx wrote."
            )
    return model


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a protobuf message, however deep: initializers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def _not_onnx(path: Path, error: Exception) -> EdistillError:
    return EdistillError(
        f"{path} is no ONNX file that onnxruntime can run: {first_line(error)}. Give a file that edistill "
        "export --onnx wrote."
    )


@dataclass(frozen=True)
class _End:
    """An input of a graph; a size is a number, or a name where it is free."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    def takes(self, shape: tuple[int, ...], of: str = FLOATS) -> bool:
        """Whether it takes any number of rows of that shape."""
        batch, *sizes = self.shape or (1,)
        fits = len(sizes) == len(shape) and all(
            a == b or not isinstance(a, int) for a, b in zip(sizes, shape, strict=True)
        )
        return self.type == of and not isinstance(batch, int) and fits


class Served:
    """An exported student, ready to run."""

    def __init__(self, path: Path, *, changed: bool = False, threads: int | None = None) -> None:
        """
        Args:
            changed: its user changed the file since it was exported, by quantizing it for instance: its sha256 is left
                aside.
            threads: that one operation takes; None for all cores.

        Raises:
            EdistillError: there is no such file, or it is not an ONNX file of ours.
        """
        path = next((path / name for name in (EXPORTED, ONNX) if (path / name).is_file()), path)
        if path.is_dir():
            raise EdistillError(f"{path} holds no {EXPORTED}. Run edistill export --onnx, or pass --model FILE.")
        if not path.is_file():
            raise EdistillError(f"There is no {path}. Run edistill export --onnx, or pass --model FILE.")
        content = onnx_content(path)
        if not changed:
            refuse_damaged_onnx(path, content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        if threads is not None:
            options.intra_op_num_threads = threads
        self.path = path
        model = _opened(content, path)
        self.ir_version = int(model.ir_version)
        self.opsets = {entry.domain: int(entry.version) for entry in model.opset_import}
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        del model  # which holds the weights once more
        self.card = Card.from_metadata(metadata, path)
        if not changed and ONNX_KEY not in metadata and self.card.version not in UNSEALED:
            raise damaged(path, f"the sha256 is missing that files of edistill {self.card.version} hold")
        try:
            # of the bytes that were looked at, and with no path: what is named in them is read from nowhere
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise _not_onnx(path, error) from None
        self._refuse_other_ends()
        self.inputs: tuple[str, ...] = tuple(i.name for i in self.session.get_inputs())
        self.input: str = self.inputs[0]
        self.outputs: tuple[str, ...] = tuple(output.name for output in self.session.get_outputs())

    def _refuse_other_ends(self) -> None:
        """Raises: EdistillError when inputs or outputs are not those of the card."""
        inputs = [_End(i.name, i.type, tuple(i.shape)) for i in self.session.get_inputs()]
        outputs = {o.name: o.type for o in self.session.get_outputs()}
        if self.card.encoding is not None:
            self._refuse_other_fields(inputs, self.card.encoding)
        else:
            self._refuse_other_inputs(inputs, outputs)
        for name in self.card.task.served(0):
            if name not in outputs:
                raise self._other(f"it has no output {name}, and {', '.join(outputs) or 'none at all'}")
        for name in self._ends(0).keys() & outputs.keys():
            if outputs[name] != FLOATS:
                raise self._other(f"its output {name} is {outputs[name]}, and not {FLOATS}")

    def _refuse_other_inputs(self, inputs: list[_End], outputs: Mapping[str, str]) -> None:
        """As above: one input, and of a stream its state."""
        states = [end for end in inputs[1:] if self._is_state(end, outputs)]
        of, shape = IDS if self.card.kind == "tokens" else FLOATS, self.card.shape
        if self.card.input == "uint8":
            of, shape = BYTES, (*shape[1:], shape[0])
        if len(inputs) != 1 + len(states) or not inputs[0].takes(shape, of):
            told = ", ".join(f"{end.name}: {end.type} {list(end.shape)}" for end in inputs) or "none"
            raise self._other(f"its inputs are {told}, and not one {of}, any number of {shape}")

    def _refuse_other_fields(self, inputs: list[_End], encoding: Named) -> None:
        """As above, of a student of texts or of several arrays."""
        if isinstance(encoding, Several):
            wanted = {slot.name: (slot.shape, IDS if slot.ids else FLOATS) for slot in encoding.slots}
        else:
            wanted = dict.fromkeys(encoding.fields, ((encoding.length,), IDS))
        fits = [end.name for end in inputs if end.name in wanted and end.takes(*wanted[end.name])]
        if sorted(fits) != sorted(wanted) or len(inputs) > len(fits):
            told = ", ".join(f"{end.name}: {end.type} {list(end.shape)}" for end in inputs) or "none"
            asked = ", ".join(f"{name}: {of} {list(shape)}" for name, (shape, of) in wanted.items())
            raise self._other(f"its inputs are {told}, and not any number of {asked}")

    def given(self, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Rows by the names of the graph's inputs. Where the graph takes any length, texts are padded no further than
        the longest of them."""
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
        """Normalized pixels (B, C, H, W) as the bytes (B, H, W, C) that they are of. Raises EdistillError where they
        are of none."""
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
        """Whether an input is a part of a recurrent student's state, which comes out again."""
        after = end.name.replace(STATE, NEW_STATE, 1)
        free = sum(not isinstance(size, int) for size in end.shape)
        return (
            self.card.kind == "tokens"
            and end.name.startswith(STATE)
            and end.type == outputs.get(after) == FLOATS
            and free == 1
        )

    @property
    def reading(self) -> Reading | None:
        """How a text becomes its rows; None where those are no tokens."""
        task = self.card.task
        if not task.of_tokens:
            return None
        window = task.shape[0]
        unit = getattr(task, "token_unit", None) or "word"
        return Reading(unit, window, self.card.shape[0] - window, known=task.names, short=True)

    def begun(self, rows: int) -> dict[str, NDArray[np.float32]]:
        """The state of so many streams where they begin, by the names of the graph's inputs; none without a state."""
        return {
            i.name: np.zeros([size if isinstance(size, int) else rows for size in i.shape], np.float32)
            for i in self.session.get_inputs()[1:]
        }

    def _ends(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each output that is read."""
        task = self.card.task
        return {**task.served(rows), **dict.fromkeys(UNCERTAINTIES, (rows, *task.shape[:-1]))}

    def _other(self, told: str) -> EdistillError:
        return EdistillError(
            f"{self.path} is not as edistill writes it: {told}. Export the run again: {export_again(self.path)}."
        )

    def example(self) -> dict[str, NDArray[Any]]:
        """A row of nothing by the names of the graph's inputs: zeros, and ones of texts, which no mask hides, and of
        several arrays."""
        encoding = self.card.encoding
        if isinstance(encoding, Several):
            return self.given(np.ones((1, *encoding.shape), np.float32))
        if encoding is not None:
            return {field: np.ones((1, encoding.length), np.int64) for field in encoding.fields}
        if self.card.input == "uint8":
            return {self.input: np.zeros((1, *self.card.shape[1:], self.card.shape[0]), np.uint8)}
        return self.given(np.zeros((1, *self.card.shape), np.int64 if self.card.ids else np.float32))

    def run(self, x: NDArray[np.float32]) -> Outputs:
        """Named outputs for preprocessed inputs (B, *shape), float32, or int64 ids; each stands by itself, and a state
        begins anew. Of positions those that the task tells.

        Raises:
            EdistillError: the graph fails, or gives outputs of another shape than its rows and classes have.
        """
        options = onnxruntime.RunOptions()
        options.log_severity_level = SILENT
        try:
            found = dict(zip(self.outputs, self.session.run(None, self.given(x), options), strict=True))
        except Exception as error:  # as above
            mend = f"Export the run again: {export_again(self.path)}."
            if self.card.ids:
                mend = f"Their largest id is {x.max()}: give ids of the vocabulary that the student was trained with."
            raise EdistillError(
                f"{self.path} fails on {len(x)} rows of shape {x.shape[1:]}: {first_line(error)}. {mend}"
            ) from None
        found = self._told(found)
        for name, shape in self._ends(len(x)).items():
            if name in found and found[name].shape != shape:
                raise self._other(f"of {len(x)} rows it gives {name} of shape {found[name].shape}, and not {shape}")
        return found

    def _told(self, found: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Of a graph with a state, which tells every position, the positions that the task tells, and no state."""
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
        """Rows of a batch that memory is sure to hold."""
        ends = [
            (end.shape, SIZES.get(end.type, 4)) for end in (*self.session.get_inputs(), *self.session.get_outputs())
        ]
        return rows_at_once(ends, longest=max(self.card.shape))

    def predict(self, source: Source, batch_size: int | None = None) -> Iterator[tuple[range, Outputs]]:
        """Rows of a source and their outputs, a batch at a time.

        Args:
            batch_size: rows of a batch; None for `at_once`.

        Raises:
            EdistillError: the rows are not what the student takes.
        """
        if source.kind != self.card.kind:
            encoding = self.card.encoding
            takes: str = self.card.kind
            if isinstance(encoding, Several):
                takes = " and ".join(f"{part.name} ({part.kind})" for part in encoding.parts)
            raise EdistillError(
                f"{self.path} takes {takes}, but the input holds {held(source)}. Give rows like those it was trained "
                "on."
            )
        self._refuse_single_texts(source)
        self._refuse_other_features(getattr(source, "features", None))
        size = batch_size or self.at_once
        for start in range(0, len(source), size):
            rows = range(start, min(start + size, len(source)))
            items = [self._as_trained(source.item(row)) for row in rows]
            x = np.stack([plain_input(item, self.card.preprocessing) for item in items])
            if x.shape[1:] != self.card.shape:
                raise EdistillError(
                    f"{self.path} takes inputs of shape {self.card.shape}, but {source.name(start)} is {x.shape[1:]}. "
                    "Give rows like those it was trained on."
                )
            yield rows, self.run(x)

    def columns(self, declared: Declared | None) -> Declared | None:
        """Which columns of a table it takes: those that it was trained on, and of a file that does not say them those
        that are declared.

        Raises:
            EdistillError: others are declared.
        """
        trained = self.card.columns
        if trained is None:
            return declared
        if declared is not None and (given := Columns.of(declared).asked) != trained:
            self._refuse_other_features(given.features)
            raise EdistillError(
                f"{self.path} was trained on {trained.told}, and data.columns says {given.told}. Set it as it was."
            )
        return Columns.trained(trained, str(self.path))

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of a row that it takes, as the data calls them; none where a row is one."""
        encoding = self.card.encoding
        return tuple(part.name for part in encoding.parts) if isinstance(encoding, Several) else ()

    def _refuse_single_texts(self, source: Source) -> None:
        """Refuse lines, a text each, where the student was trained on pairs."""
        trained = self.card.columns
        if trained is not None and len(trained.texts) == 2 and not of_pairs(source):
            raise EdistillError(
                f"{self.path} takes pairs of texts, and the input holds a text a row. Give a table with the columns "
                f"{' and '.join(trained.texts)}."
            )

    def _refuse_other_features(self, given: tuple[str, ...] | None) -> None:
        """Refuse a table of other columns, or in another order, than the student was trained on."""
        trained = self.card.features
        if trained is None or given is None or given == trained:
            return
        pairs = list(zip_longest(trained, given))
        at = next(place for place, (one, other) in enumerate(pairs) if one != other)
        raise EdistillError(
            f"{self.path} was trained on {first_few(trained, 8)}, and the table gives {first_few(given, 8)}: number "
            f"{at} of a row is {pairs[at][0] or 'none'} there, and {pairs[at][1] or 'none'} here. Set data.columns as "
            "it was in the training."
        )

    def _as_trained(self, item: Item) -> Item:
        """Image files decode to color; a student of gray arrays sees them in gray."""
        if item.kind == "pixels" and self.card.shape[0] == 1:
            return replace(item, x=as_gray(item.x))
        return item
