"""Modules that a student copies from its teacher and freezes, such as the first convolution or the output layer.

Furlanello et al. 2018 (arXiv:1805.04770, Table 5) train residual networks that keep the first and the last layer of a
DenseNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, nearest
from ensemble_distill.students.heads import BatchedLinear, Heads
from ensemble_distill.students.student import Student

HEAD = "head"  # the name of a student's output layer, which is not part of its body
Tensors = dict[str, Tensor]


@torch.no_grad()
def share(
    student: Student, teacher: nn.Module, named: str, modules: Mapping[str, str], order: Sequence[int] | None = None
) -> None:
    """Copy modules of a teacher, buffers included, into a one-headed student, and freeze them there.

    Args:
        teacher: the network itself, or the student of a run.
        named: what messages call the teacher.
        modules: names in the student's body, or "head" for its output layer, to names in the teacher.
        order: class `order[j]` of the student is the teacher's class j; None if the orders agree.

    Raises:
        EdistillError: there is no such module, it holds no tensors, the two modules' tensors differ in name or shape,
            or nothing is left to train.
    """
    shared: dict[int, str] = {}  # the module that each of the student's shared tensors belongs to
    for mine, theirs in modules.items():
        own, given = _of_student(student, mine), _of_teacher(teacher, theirs, named)
        _refuse_overlap(mine, own, shared)
        if mine == HEAD:
            target, source = _output_layer(own, HEAD), _output_layer(given, f"the {theirs} of {named}", order)
        else:
            target, source = own.state_dict(), given.state_dict()
        _refuse_misfit(mine, theirs, named, target, source)
        for key, tensor in target.items():
            tensor.copy_(source[key])
    names = {id(module): name for name, module in student.named_modules()}
    student.freeze([names[id(_of_student(student, mine))] for mine in modules])
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise EdistillError(
            f"student.share freezes all of the student ({', '.join(modules)}). Leave something to train."
        )


def _refuse_overlap(name: str, module: nn.Module, shared: dict[int, str]) -> None:
    """Raise EdistillError if a weight of the module also belongs, or is tied, to another shared module."""
    for tensor in (*module.parameters(), *module.buffers()):
        other = shared.setdefault(id(tensor), name)
        if other != name:
            raise EdistillError(
                f"student.share names {other} and {name}, which have weights in common. Name one of them, or parts "
                "that have none."
            )


def _of_student(student: Student, name: str, named: str = "the student") -> nn.Module:
    return _last(student, named) if name == HEAD else _found(student.body, name, f"the body of {named}", [HEAD])


def _of_teacher(teacher: nn.Module, name: str, named: str) -> nn.Module:
    if isinstance(teacher, Student):
        return _of_student(teacher, name, named)
    return _found(teacher, name, named, [])


def _last(student: Student, named: str) -> BatchedLinear:
    if not isinstance(student.heads, Heads) or student.heads.count != 1:
        raise EdistillError(
            f"student.share names {HEAD}, the output layer where there is one head on the whole body, and {named} has "
            f"{student.heads.count} or a last stage for it. Share modules of the body alone."
        )
    return student.heads.last


def _found(root: nn.Module, name: str, where: str, others: Sequence[str]) -> nn.Module:
    """The module of that name. Raises EdistillError if there is none, or it has neither weights nor statistics."""
    modules: dict[str, nn.Module] = {path: module for path, module in root.named_modules() if path}
    if name in modules and modules[name].state_dict():
        return modules[name]
    if name in modules:
        raise EdistillError(f"student.share names {name} of {where}, which has no weights. Name a module that has.")
    names = [*others, *(path for path, module in modules.items() if module.state_dict())]
    near = nearest(name, names, 3, cutoff=0.5) or names[:6]
    raise EdistillError(
        f"student.share names {name!r}, and {where} has no such module. Name one of its own, such as {', '.join(near)}."
    )


def _output_layer(module: nn.Module, what: str, order: Sequence[int] | None = None) -> Tensors:
    """The weight (K, F) and bias (K,) of an output layer, in the student's class order; views if possible."""
    if isinstance(module, BatchedLinear):  # of a student
        weight, bias = module.weight[0].T, module.bias[0]
    elif isinstance(module, nn.Linear):
        weight = module.weight
        bias = torch.zeros(module.out_features) if module.bias is None else module.bias.view(-1)
    else:
        raise EdistillError(
            f"student.share gives the student's {HEAD} {what}, which is {type(module).__name__}. It takes a linear "
            "layer."
        )
    if order is not None and len(order) == len(bias):
        back = torch.as_tensor(order).argsort()
        weight, bias = weight[back], bias[back]
    return {"weight": weight, "bias": bias}


def _refuse_misfit(mine: str, theirs: str, named: str, target: Tensors, source: Tensors) -> None:
    shapes = [{key: tuple(tensor.shape) for key, tensor in side.items()} for side in (target, source)]
    if shapes[0] != shapes[1]:
        own, given = shapes
        key = next(key for key in (*own, *given) if own.get(key) != given.get(key))
        raise EdistillError(
            f"student.share gives the student's {mine} the {theirs} of {named}, and they differ: {key} is "
            f"{own.get(key, 'absent')} in the student and {given.get(key, 'absent')} in the teacher. Share modules of "
            "equal shape."
        )
