"""Modules as ONNX graphs by torch's exporter, with named inputs and outputs and without traces of this machine."""

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
    """A module whose several outputs have names."""

    names: tuple[str, ...]


class UntraceableError(EdistillError):
    """Torch's exporter failed on a module; the text is the reason."""


class Fields(nn.Module):
    """A module of one packed input, called with its arrays separately; those of texts are (B, L) each."""

    def __init__(self, of: Named, to: Taken) -> None:
        super().__init__()
        self.of, self.names, self.taken = of, of.names, to

    def forward(self, *fields: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.of(together(fields, self.taken))
        return found


def graph_of_fields(module: Named, example: Tensor, to: Taken) -> onnx.ModelProto:
    """A graph that takes each array by its name, for any number of rows and, for texts, of tokens.

    If torch treats the number of tokens as a constant, it is the length that texts are padded to.

    Raises:
        UntraceableError: torch cannot export the module.
    """
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
    """Why torch cannot export a module with one output; None if it can."""
    try:
        graph_of(_One(module).eval(), example, "input")
    except UntraceableError as error:
        return str(error)
    return None


class _One(nn.Module):
    """A module with one output, which has a name."""

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
    """The graph of a module whose input `name` takes any number of rows.

    Args:
        states, axes: state tensors that are further inputs, and the axis of the streams in each; with them the example
            may have any length.

    Raises:
        UntraceableError: torch cannot export the module.
    """
    batch, length = torch.export.Dim("batch_size"), torch.export.Dim("length")
    free: Any = ({0: batch, 1: length}, [{axis: batch} for axis in axes]) if states else ({0: batch},)
    given = (example, list(states)) if states else (example,)
    return _traced(module, given, [name, *state_names(len(states))[0]], free, len(states))


def _traced(module: Any, given: Any, inputs: Sequence[str], free: Any, states: int = 0) -> onnx.ModelProto:
    """The graph of a module with named outputs.

    Args:
        given: the example inputs.
        inputs: their names.
        free: their dynamic dimensions.
        states: how many state tensors are inputs, and outputs again.
    """
    _forget_kernels()
    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)  # the exporter logs its steps, and prints whole graphs if it fails
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
                output_names=[f"edistill.{name}" for name in module.names],  # a prefix that no body uses
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds of errors; all mean that this module cannot be exported
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
    """Clear torch's record of the kernels it used for recurrences.

    The exporter substitutes its own kernels for torch's, which unroll to one length. torch caches its choice, so that a
    second export in the same process would use its own again.
    """
    for recurrence in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        getattr(recurrence, "_dispatch_cache", {}).clear()


def _forget_the_machine(model: Any) -> None:
    """Remove the exporter's notes, which record where each node's code lies on this machine."""
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
    """Give the outputs their names; an inner value that already has one of them, such as a body's "mean", is
    renamed."""
    from onnxscript import ir

    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in names:
                value.name = f"edistill.body.{value.name}"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _free_lengths(model: Any, told: int) -> None:
    """Remove inner shapes, in which the exporter fixes every recurrence to the example's length.

    The first `told` outputs get a dimension "length"; the states after them have none.
    """
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
    """The first line of the innermost cause, which the exporter wraps in pages of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return quoted(error)
