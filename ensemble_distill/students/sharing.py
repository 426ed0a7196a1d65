"""Modules that a student takes from its teacher as they are, and that stay so: the first convolution, the output layer.

Furlanello et al. 2018 (arXiv:1805.04770, section 5.3) train residual networks so, from a DenseNet whose first and last
layers they keep.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.heads import BatchedLinear, Heads
from ensemble_distill.students.student import Student

HEAD = "head"  # what a student's output layer is called, which is no part of its body
Tensors = dict[str, Tensor]


@torch.no_grad()
def share(
    student: Student, teacher: nn.Module, named: str, modules: Mapping[str, str], order: Sequence[int] | None = None
) -> None:
    """Copy modules of a teacher into a one-headed student, buffers included, and freeze them there.

    Args:
        teacher: the network itself, or the student of a run.
        named: what messages call it.
        modules: names in the student's body, or "head" for its output layer, to names in the teacher.
        order: class `order[j]` of the student is the teacher's class j; None where they are the same.

    Raises:
        EdistillError: there is no such module, it holds nothing, or its tensors are not those of the other.
    """
    for mine, theirs in modules.items():
        own = _of_student(student, mine)
        given = _of_teacher(teacher, theirs, named)
        if mine == HEAD:
            target, source = _output_layer(own, HEAD), _output_layer(given, f"the {theirs} of {named}", order)
        else:
            target, source = own.state_dict(), given.state_dict()
        _refuse_misfit(mine, theirs, named, target, source)
        for key, tensor in target.items():
            tensor.copy_(source[key])
    names = {id(module): name for name, module in student.named_modules()}
    student.freeze([names[id(_of_student(student, mine))] for mine in modules])


def _of_student(student: Student, name: str, where: str = "the student's body") -> nn.Module:
    return _last(student) if name == HEAD else _found(student.body, name, where, [HEAD])


def _of_teacher(teacher: nn.Module, name: str, named: str) -> nn.Module:
    if isinstance(teacher, Student):
        return _of_student(teacher, name, f"the body of {named}")
    return _found(teacher, name, named, [])


def _last(student: Student) -> BatchedLinear:
    if not isinstance(student.heads, Heads) or student.heads.count != 1:
        raise EdistillError(
            f"student.share names {HEAD}, the output layer of a student with one head and no last stage of its own. "
            "Set student.heads to [] or to hidden sizes, and use a method with one head."
        )
    return student.heads.last


def _found(root: nn.Module, name: str, where: str, others: Sequence[str]) -> nn.Module:
    """Raises EdistillError when there is no such module, or it has neither weights nor statistics."""
    modules: dict[str, nn.Module] = {path: module for path, module in root.named_modules() if path}
    if name in modules and modules[name].state_dict():
        return modules[name]
    if name in modules:
        raise EdistillError(f"student.share names {name} of {where}, which has no weights. Name a module that has.")
    names = [*others, *(path for path, module in modules.items() if module.state_dict())]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:6]
    raise EdistillError(
        f"student.share names {name!r}, and {where} has no such module. Name one of its own, such as {', '.join(near)}."
    )


def _output_layer(module: nn.Module, what: str, order: Sequence[int] | None = None) -> Tensors:
    """The weight (F, K) and bias (K,) of an output layer, classes in the student's order; views where they can be."""
    if isinstance(module, BatchedLinear):  # a student's own
        weight, bias = module.weight[0], module.bias[0]
    elif isinstance(module, nn.Linear):
        weight = module.weight.T
        bias = torch.zeros(module.out_features) if module.bias is None else module.bias.view(-1)
    else:
        raise EdistillError(
            f"student.share gives the student's {HEAD} {what}, which is {type(module).__name__}. It takes a linear "
            "layer."
        )
    if order is not None and len(order) == len(bias):
        back = torch.as_tensor(order).argsort()
        weight, bias = weight[:, back], bias[back]
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
