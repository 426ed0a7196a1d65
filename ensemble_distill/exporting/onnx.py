"""A student as one ONNX file that carries its uncertainties and all it needs to be served."""

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
UNROLLS = torch.torch_version.TorchVersion(torch.__version__) < "2.13"  # its exporter gives recurrences one length


class Predicts(Protocol):
    """What is exported: a module from x (B, ...) to raw numbers (B, M, W) that knows what these mean."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def predictive(self, raw: Tensor) -> Predictive: ...


class Predictions(Named):
    """x to the exported outputs, in the order of `names`."""

    def __init__(self, of: Predicts, x: Tensor) -> None:
        """`of` is a module; `x` (B, ...) is any input: running it tells which outputs it has."""
        super().__init__()
        self.of = of
        with torch.no_grad():
            self.names = tuple(self.named(x))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(x).values())

    def named(self, x: Tensor) -> dict[str, Tensor]:
        """What is said of rows x (B, ...), by name."""
        return named_outputs(self.of.predictive(self.of(x)))


class Streamed(Named):
    """Ids (B, T) and a state to the outputs of every position and the state after them, in the order of `names`."""

    def __init__(self, stream: Stream, ids: Tensor, states: Sequence[Tensor]) -> None:
        """`ids` and `states` are any input: running it tells which outputs there are."""
        super().__init__()
        self.of = stream
        with torch.no_grad():
            self.names = tuple(self.named(ids, states))

    def forward(self, ids: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.named(ids, states).values())

    def named(self, ids: Tensor, states: Sequence[Tensor]) -> dict[str, Tensor]:
        """What is said, by name."""
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
    """Write `path` and check it against torch.

    Args:
        student: in eval mode, on the CPU.
        config: what it is and where it came from; goes into the file's metadata.
        x: real preprocessed rows (B, *shape), B ≥ 1, to compare on, alone and together.
        path: the .onnx file; it appears only when the comparison has passed.
        made_from: the run that the student is of, which the file then names.
        progress: is told of a state that the file cannot take.
        reference: what the student says of calibration rows; None where there are none.
        versions: in which the file is written.

    Raises:
        EdistillError: the body cannot be exported, or not in these versions, the file would exceed 2 GB, or
            onnxruntime's outputs differ from torch's by more than `Task.tolerance` says.
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


# --- what exports of students and of the members themselves share -----------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What a file is to say of real rows.

    Attributes:
        x: (B, *shape), preprocessed.
        outputs: of these rows, by name.
        tolerance: by how much one may be off, of its name and all outputs of the same rows.
        otherwise: what to do where one is off by more, a sentence.
    """

    x: Tensor
    outputs: Outputs
    tolerance: Callable[[str, Outputs], NDArray[Any] | float]
    otherwise: str


def refuse_large(module: nn.Module, whose: str, instead: str) -> None:
    """Raise EdistillError for more weights than one file holds."""
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > LARGEST:
        raise EdistillError(f"{whose} has {size / 2**30:.1f} GB of weights, and one ONNX file holds 2 GB. {instead}.")


def traced(of: Predicts, card: Card) -> tuple[Predictions, onnx.ModelProto]:
    """A module in eval mode, and its graph with the card in it. Raises UntraceableError."""
    # a batch of 1 would be taken for a constant
    example = nothing(2, card.shape, card.ids)
    try:
        module = Predictions(of, example).eval()
    except EdistillError:
        raise
    except Exception as error:  # a module is anyone's code
        raise UntraceableError(reason_of(error)) from error
    if card.encoding is not None:
        return module, _with_card(graph_of_fields(module, example, card.encoding), card)
    model = graph_of(module, example, input_name(card.kind))
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UntraceableError(CONSTANT.format("the number of rows"))
    return module, _with_card(model, card)


def streamed(student: Student, card: Card, progress: Progress) -> tuple[Predictions, onnx.ModelProto] | None:
    """The graph of a recurrent student, which takes any number of tokens and a state, and what it is to say of rows of
    tokens; None for a student without a state, or with one that no graph can take, of which it warns."""
    state = None if student.positions is None else state_of(student.body, card.shape[0])
    if state is None:
        return None
    why = state
    if isinstance(state, State):
        ids = torch.zeros(2, 7, dtype=torch.int64)  # of a length that nothing else has
        try:
            module = Streamed(Stream(student, state), ids, state.tensors).eval()
            model = graph_of(module, ids, input_name(card.kind), state.tensors, state.axes)
        except Exception as error:  # a body is anyone's code
            why = f"torch cannot export it for every length: {reason_of(error)}"
        else:
            if all(dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim):
                rows = torch.zeros(2, *card.shape, dtype=torch.int64)
                return Predictions(student, rows).eval(), _with_card(model, card)
            why = CONSTANT.format("the number of rows or of tokens")  # and says nothing of it
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
    """The bytes of a file of a graph that says this of itself, and nothing else."""
    return seal(carded(model, card).SerializeToString())


def carded(model: onnx.ModelProto, card: Card) -> onnx.ModelProto:
    """A graph that says this of itself, and nothing else."""
    del model.metadata_props[:]
    return _with_card(model, card)


def write_verified(path: Path, model: onnx.ModelProto, card: Card, wanted: Wanted) -> None:
    """Write a graph sealed, once onnxruntime says of real rows what is wanted. Raises EdistillError where it does not,
    or does not run it."""
    remedy = _remedy(model, wanted)
    write_whole(path, seal(model.SerializeToString()), check=lambda it: _compare(_opened(it, remedy), wanted))


def _remedy(model: onnx.ModelProto, wanted: Wanted) -> str:
    """What to do where onnxruntime does not run a graph: it lacks operations in bfloat16, which modules emit that call
    torch.autocast."""
    casts = (at.i for node in model.graph.node if node.op_type == "Cast" for at in node.attribute if at.name == "to")
    if onnx.TensorProto.BFLOAT16 in {*casts, *(tensor.data_type for tensor in model.graph.initializer)}:
        return "Rewrite the module to compute in float32, without torch.autocast to bfloat16."
    return wanted.otherwise


def _opened(written: Path, remedy: str) -> Served:
    """What was written just now; it is our file, so that nobody is told to give another one."""
    try:
        return Served(written)
    except UnrunnableError as error:
        raise EdistillError(
            f"onnxruntime does not run what torch exported, so nothing was written: {error.reason}. {remedy}"
        ) from error


def _compare(served: Served, wanted: Wanted) -> None:
    """On the first row alone, and on all together."""
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
