"""A module as an ONNX graph, by torch's exporter: its ends are named, and nothing of the machine stays."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.exporting.streams import state_names
from ensemble_distill.facts import Named as Taken
from ensemble_distill.facts import Tokenization
from ensemble_distill.students.fields import apart, together

CONSTANT = "torch takes {} for a constant (x.shape[0] is none, len(x) and a loop in Python are)"


class Named(nn.Module):
    """A module of several outputs, which have names."""

    names: tuple[str, ...]


class UntraceableError(EdistillError):
    """Torch's exporter fails on a module; its text is the reason."""


class Fields(nn.Module):
    """Several arrays, of texts (B, L) each, to the same."""

    def __init__(self, of: Named, to: Taken) -> None:
        super().__init__()
        self.of, self.names, self.taken = of, of.names, to

    def forward(self, *fields: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.of(together(fields, self.taken))
        return found


def graph_of_fields(module: Named, example: Tensor, to: Taken) -> onnx.ModelProto:
    """A graph that takes each array by its name, of any number of rows and, of texts alone, of tokens; of as many as a
    text is padded to where torch takes those for a constant. Raises UntraceableError."""
    taken = Fields(module, to)
    batch = torch.export.Dim("batch_size")
    ways: list[dict[int, Any]] = [{0: batch}]
    if isinstance(to, Tokenization):
        ways.insert(0, {0: batch, 1: torch.export.Dim("length", max=to.length)})
    given = example.unbind(1) if isinstance(to, Tokenization) else apart(example, to).values()
    for free in ways:
        try:
            model = _traced(taken, tuple(given), to.fields, ((free,) * len(to.fields),))
        except UntraceableError:
            if 1 not in free:
                raise
            continue
        ends = [value.type.tensor_type.shape.dim for value in model.graph.input]
        if len(ends) == len(to.fields) and all(dim[at].dim_param for dim in ends for at in free):
            return model
    raise UntraceableError(CONSTANT.format("the number of rows, or leaves one of them out: it"))


def reason_against(module: nn.Module, example: Tensor) -> str | None:
    """Why torch cannot export a module of one output by itself; None where it can."""
    try:
        graph_of(_One(module).eval(), example, "input")
    except UntraceableError as error:
        return str(error)
    return None


class _One(nn.Module):
    """A module whose only output has a name."""

    names = ("output",)

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.module(x),)


def graph_of(
    module: Any,
    example: Tensor,
    name: str,
    states: Sequence[Tensor] = (),
    axes: Sequence[int] = (),
) -> onnx.ModelProto:
    """
    Args:
        states, axes: what goes in beside the example, which then is of any length; along which axis streams lie.
    """
    batch, length = torch.export.Dim("batch_size"), torch.export.Dim("length")
    free: Any = ({0: batch, 1: length}, [{axis: batch} for axis in axes]) if states else ({0: batch},)
    given = (example, list(states)) if states else (example,)
    return _traced(module, given, [name, *state_names(len(states))[0]], free, len(states))


def _traced(module: Any, given: Any, inputs: Sequence[str], free: Any, states: int = 0) -> onnx.ModelProto:
    """
    Args:
        given: what it is called with.
        inputs: what those are called.
        free: of which length they are any.
        states: how many go in beside, and come out again.
    """
    _forget_kernels()
    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)  # the exporter logs its steps, and prints whole graphs when it fails
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside torch's own exporter
            program = torch.onnx.export(
                module,
                given,
                dynamo=True,
                external_data=False,
                dynamic_shapes=free,
                input_names=list(inputs),
                output_names=[f"edistill.{name}" for name in module.names],  # which no body has
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds; all mean that this module cannot be exported
        raise UntraceableError(reason_of(error)) from error
    finally:
        logging.disable(silenced)
    assert program is not None
    _forget_the_machine(program.model)
    _name_outputs(program.model.graph, module.names)
    if states:
        _free_lengths(program.model, len(module.names) - states)
    model: onnx.ModelProto = program.model_proto
    return model


def _forget_kernels() -> None:
    """Of recurrences the exporter puts its own kernels in the place of torch's, which unroll them to one length; torch
    remembers which it took before, and takes that again from the second export of a process on."""
    for recurrence in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        getattr(recurrence, "_dispatch_cache", {}).clear()


def _forget_the_machine(model: Any) -> None:
    """Remove the exporter's notes, which tell where on this machine the code of each node stands."""
    from onnxscript import ir

    for graph in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for noted in (node, *node.outputs):
                noted.metadata_props.clear()
                noted.doc_string = None
        for noted in (graph, *graph.inputs, *getattr(graph, "initializers", {}).values()):
            noted.metadata_props.clear()
            noted.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Call the outputs by their names. A body that takes a mean has a value of that name too, and it gets another."""
    from onnxscript import ir

    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in names:
                value.name = f"edistill.body.{value.name}"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _free_lengths(model: Any, told: int) -> None:
    """Forget the shapes inside: the exporter notes the example's length as that of every recurrence. Of the outputs the
    first `told` are of any length; the states behind them have none."""
    from onnxscript import ir

    for graph in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for value in node.outputs:
                if value not in model.graph.outputs:
                    value.shape = None
    for value in model.graph.outputs[:told]:
        at = value.shape.rank() - (2 if "logits" in value.name else 1)
        value.shape = ir.Shape([*value.shape[:at], "length", *value.shape[at + 1 :]])


def reason_of(error: BaseException) -> str:
    """The first line of what lies at the bottom: the exporter wraps it in pages about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return quoted(error)
