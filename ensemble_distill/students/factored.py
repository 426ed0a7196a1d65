"""Layers as products of factors: two of lower rank for a linear layer, three for a convolution.

The middle factor of a convolution sees each channel separately (canonical polyadic factors, as in Lebedev et al. 2015,
arXiv:1412.6553, with both sides of the kernel in one).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError

PUT_BACK = "Put back the body it was trained with, or the config.json of the run."
Layer = nn.Conv2d | nn.Linear


def is_factorable(module: nn.Module) -> TypeGuard[Layer]:
    """Whether this is torch's own linear layer or 2-D convolution, with nothing that factors cannot reproduce.

    Excluded are groups, padding other than equal zeros at both ends, complex numbers, hooks, parametrizations,
    subclasses and replaced forward methods.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if hasattr(module, "parametrizations") or any(hooks) or "forward" in vars(module):
        return False
    if not isinstance(module, nn.Conv2d | nn.Linear) or not module.weight.is_floating_point():
        return False
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and padding_of(module) is not None
    return type(module) is nn.Linear


def padding_of(layer: nn.Conv2d) -> tuple[int, ...] | None:
    """The number of zeros at either end of height and width.

    None if the ends differ, as in "same" with even kernels.
    """
    if not isinstance(layer.padding, str):
        return layer.padding
    if layer.padding == "valid":
        return 0, 0
    both = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return tuple(zeros // 2 for zeros in both) if all(zeros % 2 == 0 for zeros in both) else None


def positions(layer: Layer) -> int:
    """The number of positions of a layer's kernel; with several, a core stands between the two outer factors."""
    return math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1


def channels(layer: Layer) -> tuple[int, int]:
    """The numbers of input and output channels."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def highest_rank(layer: Layer) -> int:
    """The highest useful rank: with more channels between them, factors could express no more."""
    (inputs, outputs), kernel = channels(layer), positions(layer)
    return min(inputs, outputs) if kernel == 1 else min(inputs * outputs, inputs * kernel, outputs * kernel)


def parameters_of(layer: Layer, rank: int | None = None) -> int:
    """The number of parameters of a layer's factors, including the bias; without a rank, of the layer itself."""
    inputs, outputs = channels(layer)
    if rank is None:
        return layer.weight.numel() + (0 if layer.bias is None else outputs)
    kernel = positions(layer)
    return rank * (inputs + outputs + (kernel if kernel > 1 else 0)) + outputs


def factors_of(layer: Layer, rank: int) -> nn.Sequential:
    """Fresh factors of a layer, on its device, with `rank` channels between them: `reduce`, `core` and `expand`.

    There is no `core` for a kernel of one position. The factors map x to the same shape as the layer does. Only
    `expand` has a bias, so that padding is still zero for the core.
    """
    inputs, outputs = channels(layer)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(layer, nn.Linear):
        parts["reduce"], parts["expand"] = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs)
    else:
        ways: Any = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        if positions(layer) == 1:
            parts["reduce"] = nn.Conv2d(inputs, rank, **ways, bias=False)
        else:
            parts["reduce"] = nn.Conv2d(inputs, rank, 1, bias=False)
            parts["core"] = nn.Conv2d(rank, rank, **ways, groups=rank, bias=False)
        parts["expand"] = nn.Conv2d(rank, outputs, 1)
    factors = nn.Sequential(parts).to(layer.weight).train(layer.training)
    factors.requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        factors.get_parameter("expand.bias").requires_grad_(layer.bias.requires_grad)
    return factors


def factor(body: nn.Module, ranks: Mapping[str, int]) -> None:
    """Replace the layers in `ranks` by fresh factors.

    Raises:
        EdistillError: there is no such layer, or it has no factors of this rank.
    """
    layers = dict(body.named_modules())
    for name, rank in ranks.items():
        layer = layers.get(name) if name else None  # a body that is a layer itself has nowhere to put factors
        if layer is None or not is_factorable(layer):
            there = "is not there" if layer is None else f"is a {type(layer).__name__}, which has none"
            raise EdistillError(f"The student has factors of its body's {name!r}, and that {there}. {PUT_BACK}")
        if not 0 < rank <= highest_rank(layer):
            inputs, outputs = channels(layer)
            raise EdistillError(
                f"The student has factors of rank {rank} of its body's {name}, and a layer of {inputs} to {outputs} "
                f"channels has none such. {PUT_BACK}"
            )
        replace(body, name, factors_of(layer, rank))


def replace(body: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of that name in a body by another."""
    parent, _, child = name.rpartition(".")
    body.get_submodule(parent)._modules[child] = module


def by_position(x: Tensor, layer: Layer) -> Tensor:
    """A layer's input or output as (positions, channels)."""
    return (x.movedim(1, -1) if isinstance(layer, nn.Conv2d) else x).flatten(0, -2)
