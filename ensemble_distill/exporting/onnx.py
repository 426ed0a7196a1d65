"""A student as one ONNX file that computes its uncertainties and contains all that serving needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.streams import State, Stream, state_names, state_of
from ensemble_distill.exporting.tracing import CONSTANT, Named, UntraceableError, graph_of, graph_of_fields, reason_of
from ensemble_distill.exporting.versions import AS_TRACED, Versions, brought_to
from ensemble_distill.facts import MadeFrom
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.exports import LARGEST
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.seals import BLANK, ONNX_KEY, seal
from ensemble_distill.serving.card import Card
from ensemble_distill.serving.card_of import card_of
from ensemble_distill.serving.ends import input_name
from ensemble_distill.serving.exported_file import Outputs
from ensemble_distill.serving.served import Served, UnrunnableError
from ensemble_distill.students.fields import nothing
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.reference import Reference

INSTEAD = "Use edistill export --safetensors"
UNROLLS = torch.torch_version.TorchVersion(torch.__version__) < "2.13"  # its exporter fixes the length of recurrences


class Predicts(Protocol):
    """What is exported: a module that maps x (B, ...) to raw numbers (B, M, W), and knows their meaning."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def predictive(self, raw: Tensor) -> Predictive: ...


class Predictions(Named):
    """Maps x to the exported outputs, in the order of `names`."""

    def __init__(self, of: Predicts, x: Tensor) -> None:
        """`of` is a module; `x` (B, ...) is any valid input, run once to learn the outputs' names."""
        super().__init__()
        self.of = of
        with torch.no_grad():
            self.names = tuple(self.named(x))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(x).values())

    def named(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs for rows x (B, ...), by name."""
        return named_outputs(self.of.predictive(self.of(x)))


class Streamed(Named):
    """Maps ids (B, T) and a state to the outputs at every position and the state after them, in the order of
    `names`."""

    def __init__(self, stream: Stream, ids: Tensor, states: Sequence[Tensor]) -> None:
        """`ids` and `states` are any valid input, run once to learn the outputs' names."""
        super().__init__()
        self.of = stream
        with torch.no_grad():
            self.names = tuple(self.named(ids, states))

    def forward(self, ids: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.named(ids, states).values())

    def named(self, ids: Tensor, states: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs and the state after them, by name."""
        raw, after = self.of(ids, states)
        return {**named_outputs(self.of.predictive(raw)), **dict(zip(state_names(len(after))[1], after, strict=True))}


def export_onnx(
    student: Student,
    config: StudentConfig,
    x: Tensor,
    path: Path,
    made_from: MadeFrom | None = None,
    progress: Progress | None = None,
    reference: Reference | None = None,
    versions: Versions = AS_TRACED,
) -> Path:
    """Write `path` and compare its outputs with torch's.

    Args:
        student: in eval mode, on the CPU.
        config: its architecture and provenance, stored in the file's metadata.
        x: real preprocessed rows (B, *shape), B ≥ 1, compared one alone and all together.
        path: the .onnx file, which is created only if the comparison passes.
        made_from: the weights and the calibration of its run, which the file records.
        progress: gets a warning if the student's state cannot be exported.
        reference: statistics of calibration rows; None without any.
        versions: the ONNX versions of the file.

    Raises:
        EdistillError: the body cannot be exported, or not in these versions, the file would exceed 2 GB, or
            onnxruntime's outputs differ from torch's by more than `Task.tolerance`.
    """
    refuse_large(student, "The student", INSTEAD)
    card = card_of(config, made_from, reference)
    try:
        module, model = streamed(student, card, progress or Silent()) or traced(student, card)
    except UntraceableError as error:
        raise EdistillError(
            f"torch cannot export this student's body to ONNX: {error}. Rewrite that part of the body, or use "
            "edistill export --safetensors."
        ) from error
    model = brought_to(model, versions)
    with torch.no_grad():
        wanted = {name: values.numpy() for name, values in module.named(x).items()}
    if not all(np.isfinite(values).all() for values in wanted.values()):
        raise EdistillError(
            "The student's outputs are not finite on real rows, so nothing was written. Train it again, or "
            "calibrate it again (edistill calibrate)."
        )
    write_verified(path, model, card, Wanted(x, wanted, card.task.tolerance, f"{INSTEAD}, and report the body."))
    return path


# --- shared by the exports of students and ensembles ------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """The expected outputs of a file for real rows.

    Attributes:
        x: (B, *shape), preprocessed.
        outputs: of these rows, by name.
        tolerance: the allowed error of an output, from its name and all outputs of the same rows.
        otherwise: a sentence that says what to do if an error is larger.
    """

    x: Tensor
    outputs: Outputs
    tolerance: Callable[[str, Outputs], NDArray[Any] | float]
    otherwise: str


def refuse_large(module: nn.Module, whose: str, instead: str) -> None:
    """Raise EdistillError if the weights exceed what one ONNX file can hold."""
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > LARGEST:
        raise EdistillError(f"{whose} has {size / 2**30:.1f} GB of weights, and one ONNX file holds 2 GB. {instead}.")


def traced(of: Predicts, card: Card) -> tuple[Predictions, onnx.ModelProto]:
    """The module that gives the named outputs, in eval mode, and its graph with the card; raises UntraceableError."""
    # torch would treat a batch of 1 as a constant
    example = nothing(2, card.shape, card.ids)
    try:
        module = Predictions(of, example).eval()
    except EdistillError:
        raise
    except Exception as error:  # a module can be any code
        raise UntraceableError(reason_of(error)) from error
    if card.encoding is not None:
        return module, _with_card(graph_of_fields(module, example, card.encoding), card)
    model = graph_of(module, example, input_name(card.kind))
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UntraceableError(CONSTANT.format("the number of rows"))
    return module, _with_card(model, card)


def streamed(student: Student, card: Card, progress: Progress) -> tuple[Predictions, onnx.ModelProto] | None:
    """The graph of a recurrent student, which takes any number of tokens and a state, and the module to compare it
    with.

    None for a student without a state, or with one that no graph can take, which is warned of.
    """
    state = None if student.positions is None else state_of(student.body, card.shape[0])
    if state is None:
        return None
    why = state
    if isinstance(state, State):
        ids = torch.zeros(2, 7, dtype=torch.int64)  # a length that no other dimension has
        try:
            module = Streamed(Stream(student, state), ids, state.tensors).eval()
            model = graph_of(module, ids, input_name(card.kind), state.tensors, state.axes)
        except Exception as error:  # a body can be any code
            why = f"torch cannot export it for every length: {reason_of(error)}"
        else:
            if all(dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim):
                rows = torch.zeros(2, *card.shape, dtype=torch.int64)
                return Predictions(student, rows).eval(), _with_card(model, card)
            why = CONSTANT.format("the number of rows or of tokens")  # without saying so
    remedy = "install torch 2.13 or newer, or else fix the body," if UNROLLS else "fix the body"
    progress.warn(
        f"The body returns a state, and the file takes none: {why}. It takes rows of {card.shape[0]} tokens and tells "
        f"the last {student.positions}. To serve a stream with its state, {remedy} and export again."
    )
    return None


def _with_card(model: onnx.ModelProto, card: Card) -> onnx.ModelProto:
    onnx.helper.set_model_props(model, {**card.to_metadata(), ONNX_KEY: BLANK})
    onnx.checker.check_model(model)
    return model


def sealed_with(model: onnx.ModelProto, card: Card) -> bytes:
    """The bytes of a sealed ONNX file with this graph, and only this card in its metadata."""
    return seal(carded(model, card).SerializeToString())


def carded(model: onnx.ModelProto, card: Card) -> onnx.ModelProto:
    """The graph with only this card in its metadata."""
    del model.metadata_props[:]
    return _with_card(model, card)


def write_verified(path: Path, model: onnx.ModelProto, card: Card, wanted: Wanted) -> None:
    """Write a sealed graph if onnxruntime gives the expected outputs; raises EdistillError if it does not, or cannot
    run it."""
    remedy = _remedy(model, wanted)
    write_whole(path, seal(model.SerializeToString()), check=lambda it: _compare(_opened(it, remedy), wanted))


def _remedy(model: onnx.ModelProto, wanted: Wanted) -> str:
    """What to do if onnxruntime cannot run a graph: it lacks operations in bfloat16, which modules with
    torch.autocast use."""
    casts = (at.i for node in model.graph.node if node.op_type == "Cast" for at in node.attribute if at.name == "to")
    if onnx.TensorProto.BFLOAT16 in {*casts, *(tensor.data_type for tensor in model.graph.initializer)}:
        return "Rewrite the module to compute in float32, without torch.autocast to bfloat16."
    return wanted.otherwise


def _opened(written: Path, remedy: str) -> Served:
    """Open the file just written; an error here blames the export, not the user's choice of file."""
    try:
        return Served(written)
    except UnrunnableError as error:
        raise EdistillError(
            f"onnxruntime does not run what torch exported, so nothing was written: {error.reason}. {remedy}"
        ) from error


def _compare(served: Served, wanted: Wanted) -> None:
    """Compare the outputs of the first row alone, and of all rows together."""
    for batch in (1, len(wanted.x)):
        outputs = {name: values[:batch] for name, values in wanted.outputs.items()}
        found = served.run(wanted.x[:batch].numpy())
        for name, values in outputs.items():
            apart = np.abs(found[name] - values)
            limit = wanted.tolerance(name, outputs)
            if not (apart <= limit).all():
                raise EdistillError(
                    f"The exported {name} differs from torch's by {apart.max():.2e} on {batch} real rows (allowed:"
                    f" {np.max(limit):.0e}), so nothing was written. {wanted.otherwise}"
                )
