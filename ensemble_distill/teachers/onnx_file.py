"""An ONNX graph (.onnx): a network, or what converters make of scikit-learn, XGBoost and LightGBM classifiers.

onnxruntime runs it. From a converter's graph the probabilities are taken, and the predicted label is ignored.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import FIELDS, Member, Named, Preprocessing, Several
from ensemble_distill.settings.teachers import of_members
from ensemble_distill.tasks import Task, open_task
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.encodings import from_tokenizer, refuse_fewer_rows
from ensemble_distill.teachers.graphs import (
    REAL,
    Port,
    class_labels,
    embedding_rows,
    given,
    other_outputs,
    ports,
    read_graph,
)
from ensemble_distill.teachers.labels import order_by_labels
from ensemble_distill.teachers.names import member_name
from ensemble_distill.teachers.preprocessing import from_settings, settled
from ensemble_distill.teachers.session import Ask, Session
from ensemble_distill.teachers.several import several_of
from ensemble_distill.teachers.teacher import Context, Origin, Teacher
from ensemble_distill.teachers.whole_files import refuse_changed

WHOLE = ("int64", "int32")
PROBABLE = ("probabilities", "output_probability", "probability", "class_probabilities", "probs")
LOGITS = ("logits",)
MOMENTS = ("mean", "variance")  # of a regressor with one output for each


def claims(path: Path) -> bool:
    return path.name.lower().endswith(".onnx") and path.is_file()


def load(path: Path, context: Context) -> Teacher:
    """Load a member.

    Raises:
        EdistillError: `read_graph` refuses the file, its inputs do not match a row of the data, or no output is plainly
            the answer.
    """
    graph, name = read_graph(path), member_name(path)
    outputs = ports(path, graph.model.graph.output)
    chosen = _answer(path, outputs, context)
    entries, named = _entries(path, given(path, graph.model), context)
    refuse_fewer_rows(embedding_rows(graph.model, FIELDS[0]), named, name)
    labels = class_labels(graph.model)
    if chosen[0].kind == "map" and labels is None:
        raise other_outputs(path, outputs, f"nothing says what {chosen[0].name} is called by")
    member = Member(
        name=name,
        sha256=graph.sha256,
        **(context.stated | {"output": _meaning(chosen, context)}),
        class_order=order_by_labels(context, name, labels, f"{path.name}'s class labels"),
        preprocessing=named or _preprocessing(name, entries[0], context),
        model=path.name,
    )
    ask = Ask(path, entries, tuple(port.name for port in chosen), labels if chosen[0].kind == "map" else None)
    return Teacher.asked_only(member, "an ONNX graph", partial(_open, member, ask), Origin(path.name))


def _open(member: Member, ask: Ask, task: type[Task]) -> Answering:
    graph = read_graph(ask.path)
    refuse_changed(ask.path, member.sha256, graph.sha256)
    return Session(task, member, ask, sum(file.stat().st_size for file in (ask.path, *graph.beside)))


def _entries(path: Path, inputs: list[Port], context: Context) -> tuple[tuple[Port, ...], Named | None]:
    """The graph's inputs, and how a row becomes them if it is a text or several arrays.

    There is one input of real numbers. For texts there are inputs named like a tokenizer's fields, and for rows of
    several arrays inputs named like the arrays.
    """
    names = [port.name for port in inputs]
    if context.arrays is not None and (len(inputs) > 1 or names[0] in _taken(context)):
        return _of_several(path, inputs, context)
    fields = tuple(field for field in FIELDS if field in [port.name for port in inputs])
    if not fields or len(fields) < len(inputs):
        return (_entry(path, inputs),), None
    if open_task(context.task).of_tokens:
        raise EdistillError(
            f"{path} takes {', '.join(port.told for port in inputs)}, and the task is {context.task}, of whose rows "
            "only modules of torch are asked. Give the module, or take the file out of teachers.path."
        )
    by_name = {port.name: port for port in inputs}
    if odd := next((port for port in inputs if port.kind not in WHOLE), None):
        raise EdistillError(f"{path} takes {odd.told}, and {odd.name} is whole numbers. Export it with int64.")
    found = from_tokenizer(member_name(path), context.settings.preprocessing, context.pairs, fields)
    if found is None:
        raise EdistillError(
            f"{path} takes {' and '.join(fields)} of a text, and nothing says which tokenizer makes them. Give the one "
            'it was trained with: teachers.preprocessing = { tokenizer = "tokenizer.json", length = 128 }, or for it '
            f"alone {of_members(member_name(path))}.preprocessing."
        )
    return tuple(by_name[field] for field in fields), found


def _taken(context: Context) -> Collection[str]:
    """The names under which a graph may take the data's arrays."""
    return context.settings.inputs.values() or [array.name for array in context.arrays or ()]


def _of_several(path: Path, inputs: list[Port], context: Context) -> tuple[tuple[Port, ...], Several]:
    """The inputs in the order of the data's arrays, and how the arrays become them.

    Raises:
        EdistillError: the inputs' names or types do not match the arrays.
    """
    found = several_of(member_name(path), context, [port.name for port in inputs])
    assert found is not None
    by_name = {port.name: port for port in inputs}
    for slot in found.slots:
        port = by_name[slot.name]
        if port.kind not in (WHOLE if slot.ids else REAL):
            wanted = "whole numbers" if slot.ids else "real numbers"
            raise EdistillError(
                f"{path} takes {port.told}, and {slot.name} is {wanted} of {slot.shape} a row. Export it with "
                f"{'int64' if slot.ids else 'float'}."
            )
    return tuple(by_name[slot.name] for slot in found.slots), found


def _entry(path: Path, inputs: list[Port]) -> Port:
    """The only input, of real numbers; raises EdistillError if there are others."""
    told = ", ".join(port.told for port in inputs) or "none"
    if len(inputs) != 1:
        raise EdistillError(
            f"{path} has {len(inputs)} inputs ({told}), and a row of the data is one array. Convert it with "
            'one, initial_types=[("X", FloatTensorType([None, F]))] for F columns; or give data of several arrays a '
            "row, which it takes by these names."
        )
    if inputs[0].kind not in REAL:
        raise EdistillError(
            f"{path} takes {told}, and rows are given as float, double or float16. Convert it with one of those."
        )
    return inputs[0]


def _answer(path: Path, outputs: list[Port], context: Context) -> list[Port]:
    """The output that is the answer, chosen by its name, by its width, or as the only matrix; or a mean and a variance.

    Raises:
        EdistillError: no output, or more than one, can be the answer.
    """
    answers = [port for port in outputs if port.kind == "map" or port.is_matrix]
    by_name = {port.name.lower(): port for port in answers}
    if context.settings.output == "mean-variance" and all(name in by_name for name in MOMENTS):
        return [by_name[name] for name in MOMENTS]
    named = [by_name[name] for name in (*LOGITS, *PROBABLE) if name in by_name]
    if named:
        return named[:1]
    if len(answers) > 1 and context.names is not None:
        answers = [port for port in answers if port.shape and port.shape[-1] == len(context.names)] or answers
    if len(answers) != 1:
        why = "several could be it" if answers else "none is a matrix of real numbers"
        raise other_outputs(path, outputs, why)
    return answers


def _meaning(chosen: list[Port], context: Context) -> Any:
    """What the answer means: by the member's own table, else by its name, else by `[teachers]`."""
    if context.said is not None and context.said[1].output is not None:
        return context.said[1].output
    probable = chosen[0].kind == "map" or chosen[0].name.lower() in PROBABLE
    return "probabilities" if probable and open_task(context.task).named else context.settings.output


def _preprocessing(name: str, entry: Port, context: Context) -> Preprocessing | None:
    """The preprocessing of pictures (N, C, H, W) if the settings state one; the graph's own size wins."""
    said = from_settings(context.settings.preprocessing)
    if not said or (context.arrays is not None and len(entry.shape or ()) != 4):
        return None
    shape = entry.shape or ()
    own: dict[str, Any] = {}
    if len(shape) == 4 and shape[2] and shape[3]:
        own["size"] = (shape[2], shape[3])
    if len(shape) == 4 and shape[1] == 1:
        own["channels"] = 1
    return settled(name, own, said)
