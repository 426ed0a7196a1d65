"""A `model.py` for members that are bare weights: their tensors, and the functions that only the user can write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ensemble_distill.errors import first_few
from ensemble_distill.runtime.names import natural_key, one_line
from ensemble_distill.setup.members import Found, Shapes

MOST = 60  # layers to list per architecture
NORMS = ("running_mean", "running_var", "num_batches_tracked")


def stub(groups: Sequence[Sequence[Found]], names: Sequence[str], *, body: bool) -> str:
    """The text of the file.

    Args:
        groups: members of one architecture each.
        names: the function that builds each group.
        body: whether the student's body is to be written, too.
    """
    parts = [HEAD]
    for group, name in zip(groups, names, strict=True):
        told = one_line(first_few([one.path.name for one in group]))
        parts.append(TEACHER.format(name=name, members=told, layers="\n".join(_layers(group[0].shapes))))
    return "\n\n".join([*parts, BODY] if body else parts) + "\n"


def _layers(shapes: Shapes) -> Iterator[str]:
    """A line for each layer: its name, its tensors, and the module that has such tensors."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in sorted(shapes.items(), key=lambda one: natural_key(one[0])):
        layer, _, tensor = one_line(name).rpartition(".")  # escaped, since names are foreign, and this file is code
        layers.setdefault(layer, {})[tensor] = shape
    width = max(map(len, layers), default=0)
    for index, (layer, tensors) in enumerate(layers.items()):
        if index == MOST:
            yield f"    #   and {len(layers) - MOST} more layers"
            return
        listed = ", ".join(f"{name} {_shape(shape)}" for name, shape in tensors.items() if name not in NORMS)
        guess = _module(tensors)
        yield f"    #   {layer:<{width}}  {listed}" + (f"   {guess}" if guess else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"


def _module(tensors: Shapes) -> str:
    """The torch module that evidently has these tensors, else ""."""
    weight, bias = tensors.get("weight"), "" if "bias" in tensors else ", bias=False"
    if weight is None:
        return ""
    if "running_mean" in tensors:
        return f"BatchNorm of {weight[0]}"
    if len(weight) == 2 and set(tensors) <= {"weight", "bias"}:
        return (
            f"Linear({weight[1]}, {weight[0]}{bias}), or an Embedding" if bias else f"Linear({weight[1]}, {weight[0]})"
        )
    if len(weight) == 4:
        return f"Conv2d({weight[1]}, {weight[0]}, {_shape(weight[2:])}{bias}); stride, padding and groups are not saved"
    return ""


HEAD = '''"""The networks behind the checkpoints, written by edistill init. edistill.toml names these functions.

Fill in what raises NotImplementedError. What is between the layers, such as activations, no checkpoint says.
"""

from torch import nn'''

TEACHER = '''
def {name}() -> nn.Module:
    """A batch of inputs to logits (B, classes), or to what teachers.output says."""
    # These are loaded into it: {members}.
    # The layers in them, by the names that your module has to give them:
{layers}
    raise NotImplementedError("build the module that these weights are of")
'''.rstrip()

BODY = '''
def make_body() -> nn.Module:
    """A body of the student: a batch of inputs to features (B, F). A member without its last layer is a good one."""
    raise NotImplementedError("build the student's body")
'''.rstrip()
