"""Layers as products of factors of lower rank: of a convolution three (Tucker-2: Kim et al. 2016, arXiv:1511.06530), of
a linear layer two."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError

Ranks = tuple[int, int]  # channels after the first factor and before the last; of two factors they are the same
PUT_BACK = "Put back the body it was trained with."
Layer = nn.Conv2d | nn.Linear


def is_factorable(module: nn.Module) -> TypeGuard[Layer]:
    """Whether it is torch's own linear layer or 2-D convolution with nothing that a product would not do: groups, other
    padding than so many zeros, hooks, parametrizations, ways of a subclass."""
    if hasattr(module, "parametrizations") or module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def positions(layer: Layer) -> int:
    """Of its kernel; with several there is a core between two factors."""
    return math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1


def channels(layer: Layer) -> tuple[int, int]:
    """How many it reads and gives."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def admits(layer: Layer, ranks: Ranks) -> bool:
    """Whether its factors may have these ranks: none is higher than the factors beside it let through."""
    inner, outer = ranks
    inputs, outputs = channels(layer)
    kernel = positions(layer)
    if kernel == 1:
        return 0 < inner == outer <= min(inputs, outputs)
    return 0 < inner <= min(inputs, outer * kernel) and 0 < outer <= min(outputs, inner * kernel)


def parameters_of(layer: Layer, ranks: Ranks | None = None) -> int:
    """How many its factors have, the bias included; without ranks those of the layer itself."""
    whole = layer.weight.numel()
    inputs, outputs = channels(layer)
    if ranks is None:
        return whole + (0 if layer.bias is None else outputs)
    inner, outer = ranks
    if positions(layer) == 1:
        return inner * (inputs + outputs) + outputs
    reduce, expand = (inputs * inner if inner < inputs else 0), (outer * outputs if outer < outputs else 0)
    return reduce + positions(layer) * inner * outer + expand + outputs


def factors_of(layer: Layer, ranks: Ranks) -> nn.Sequential:
    """Fresh factors of a layer, on its device: `reduce`, `core` and `expand`. For a kernel of one position there is no
    `reduce`; elsewhere `reduce` and `expand` are left out at full rank.

    x to the same shape as the layer's. Only the last of them has a bias, so that padding stays zero to the core.
    """
    inputs, outputs = channels(layer)
    inner, outer = ranks
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(layer, nn.Linear):
        parts["core"], parts["expand"] = nn.Linear(inputs, outer, bias=False), nn.Linear(outer, outputs)
    else:
        if positions(layer) > 1 and inner < inputs:
            parts["reduce"], inputs = nn.Conv2d(inputs, inner, 1, bias=False), inner
        expanded = outer < outputs or positions(layer) == 1
        ways: Any = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        parts["core"] = nn.Conv2d(inputs, outer, **ways, bias=not expanded)
        if expanded:
            parts["expand"] = nn.Conv2d(outer, outputs, 1)
    factors = nn.Sequential(parts).to(layer.weight).train(layer.training)
    return factors.requires_grad_(layer.weight.requires_grad)


def factor(body: nn.Module, ranks: Mapping[str, Ranks]) -> None:
    """Put fresh factors in the place of a body's layers; those of `ranks` alone.

    Raises:
        EdistillError: there is no such layer, or it has no factors of these ranks.
    """
    layers = dict(body.named_modules())
    for name, wanted in ranks.items():
        layer = layers.get(name) if name else None  # a body that is a layer itself has nowhere to put factors
        if layer is None or not is_factorable(layer):
            there = "is not there" if layer is None else f"is a {type(layer).__name__}, which has none"
            raise EdistillError(f"The student has factors of its body's {name!r}, and that {there}. {PUT_BACK}")
        if not admits(layer, wanted):
            inputs, outputs = channels(layer)
            raise EdistillError(
                f"The student has factors of ranks {wanted} of its body's {name}, and a layer of {inputs} to {outputs} "
                f"channels has none such. {PUT_BACK}"
            )
        replace(body, name, factors_of(layer, wanted))


def replace(body: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    body.get_submodule(parent)._modules[child] = module


def by_position(x: Tensor, layer: Layer) -> Tensor:
    """A layer's input or output as (positions, channels)."""
    return (x.movedim(1, -1) if isinstance(layer, nn.Conv2d) else x).flatten(0, -2)
